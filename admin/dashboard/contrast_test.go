package dashboard

import (
	"io/fs"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestTextCanBeRead: the contrast of each text with what is behind it is as WCAG AA asks, in the light
// and in the dark: 4.5, or 3 for the parts of charts.
func TestTextCanBeRead(t *testing.T) {
	css, err := fs.ReadFile(files, "style.css")
	if err != nil {
		t.Fatal(err)
	}
	light, dark := colours(t, string(css))
	const text, graphic = 4.5, 3
	type pair struct {
		front, back string
		least       float64
	}
	var pairs []pair
	for _, front := range []string{"text", "quiet", "link", "bad", "good", "warn"} {
		pairs = append(pairs, pair{front, "card", text}, pair{front, "page", text})
	}
	for _, front := range []string{"text", "quiet", "bad", "link"} {
		pairs = append(pairs, pair{front, "badback", text})
	}
	for _, front := range []string{"text", "link"} { // messages, and the row under the mouse
		pairs = append(pairs, pair{front, "free", text})
	}
	for _, back := range []string{"link", "bad"} { // buttons
		pairs = append(pairs, pair{"card", back, text})
	}
	pairs = append(pairs, pair{"pin", "card", text})
	for _, back := range []string{"t0", "t1", "t2", "t3", "t4", "t5"} {
		pairs = append(pairs, pair{"#fff", back, text}, pair{"sub", back, text})
	}
	for _, front := range []string{"blue", "orange", "pin"} {
		pairs = append(pairs, pair{front, "card", graphic})
	}
	for theme, of := range map[string]map[string]colour{"light": light, "dark": dark} {
		for _, p := range pairs {
			back := of[p.back]
			front, ok := of[p.front]
			switch p.front {
			case "#fff":
				front = colour{1, 1, 1}
			case "sub": // white with the opacity of .treemap .sub
				for n := range front {
					front[n] = subOpacity(t, string(css)) + (1-subOpacity(t, string(css)))*back[n]
				}
			default:
				if !ok {
					t.Fatalf("%s: no colour %s", theme, p.front)
				}
			}
			if got := contrast(front, back); got < p.least {
				t.Errorf("%s: %s on %s has a contrast of %.2f; %.1f is needed", theme, p.front, p.back, got, p.least)
			}
		}
	}
}

// colour is red, green and blue, from 0 to 1.
type colour [3]float64

// colours returns the variables of the style sheet. The dark ones are the second block.
func colours(t *testing.T, css string) (light, dark map[string]colour) {
	t.Helper()
	blocks := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(css, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of colours", len(blocks))
	}
	read := func(block string) map[string]colour {
		all := map[string]colour{}
		for _, m := range regexp.MustCompile(`--(\w+): #([0-9a-f]{3,6});`).FindAllStringSubmatch(block, -1) {
			hex := m[2]
			if len(hex) == 3 {
				hex = strings.Join([]string{hex[:1], hex[:1], hex[1:2], hex[1:2], hex[2:], hex[2:]}, "")
			}
			var c colour
			for n := range c {
				v, err := strconv.ParseUint(hex[2*n:2*n+2], 16, 8)
				if err != nil {
					t.Fatal(err)
				}
				c[n] = float64(v) / 255
			}
			all[m[1]] = c
		}
		return all
	}
	return read(blocks[0][1]), read(blocks[1][1])
}

func subOpacity(t *testing.T, css string) float64 {
	t.Helper()
	m := regexp.MustCompile(`\.treemap \.sub \{[^}]*opacity: ([0-9.]+)`).FindStringSubmatch(css)
	if m == nil {
		return 1
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// contrast is the contrast ratio of WCAG 2: from 1 to 21.
func contrast(a, b colour) float64 {
	x, y := a.luminance(), b.luminance()
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func (c colour) luminance() float64 {
	for n, v := range c {
		if v <= 0.04045 {
			c[n] = v / 12.92
		} else {
			c[n] = math.Pow((v+0.055)/1.055, 2.4)
		}
	}
	return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2]
}
