//go:build integration

package integration

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is a headless Chromium with one page. Its methods must be called from the test's
// goroutine.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex // guards what follows
	faults []string   // errors in the console, among them what a page's policy forbids
	over   bool       // later ones are of no interest
}

// helpers are what the expressions of the tests use.
const helpers = `
var text = (css) => { const e = document.querySelector(css); return e ? e.textContent.replace(/\s+/g, " ") : ""; };
var visible = (css) => { const e = document.querySelector(css); return !!e && e.checkVisibility(); };
`

// startBrowser starts Chromium, which ends with the test. The test fails if there was an error in
// the console.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: integration/install-tools installs it", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox) // the tests are root
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.note); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.check)
	return b
}

// note keeps what the console says is wrong.
func (b *browser) note(event any) {
	fault := ""
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			fault = e.Entry.Text + " " + e.Entry.URL
		}
	case *runtime.EventConsoleAPICalled:
		fault = "the script wrote to the console: " + string(e.Type)
	case *runtime.EventExceptionThrown:
		fault = e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			fault += " " + e.ExceptionDetails.Exception.Description
		}
	}
	if fault == "" || strings.Contains(fault, "status of 401") { // how the script finds out that it needs the token
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.faults = append(b.faults, fault)
	}
}

// check fails if the console had errors so far. Those that come later are of no interest.
func (b *browser) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fault := range b.faults {
		b.t.Errorf("console: %s", fault)
	}
	b.faults, b.over = nil, true
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// open goes to a page.
func (b *browser) open(url string) { b.t.Helper(); b.do(chromedp.Navigate(url)) }

// eval returns the value of an expression.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](helpers+expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits until an expression is true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); !eval[bool](b, expression); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within a minute: %s; the page says\n%s", what, eval[string](b, "document.body.innerText"))
		}
	}
}

// click clicks at an element, with the mouse.
func (b *browser) click(css string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(css)))
}

// typeInto empties a field and types into it.
func (b *browser) typeInto(css, text string) {
	b.t.Helper()
	eval[string](b, `document.querySelector("`+css+`").value = ""`)
	b.do(chromedp.SendKeys(chromedp.CSS(css), text))
}

// key presses a key.
func (b *browser) key(key string) { b.t.Helper(); b.do(chromedp.KeyEvent(key)) }

// show sets the width of the window, and whether its user likes light or dark pages.
func (b *browser) show(width int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, 900))
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	if err != nil {
		b.t.Fatal(err)
	}
}

// script says whether pages may run scripts.
func (b *browser) script(on bool) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on}); err != nil {
		b.t.Fatal(err)
	}
}

// picture takes a picture of the whole page.
func (b *browser) picture(path string) {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(path, png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}
