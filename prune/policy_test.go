package prune

import "testing"

func TestInvalidPolicyIsRefused(t *testing.T) {
	if err := DefaultPolicy().Validate(); err != nil {
		t.Errorf("the default policy: %v", err)
	}
	for name, edit := range map[string]func(*Policy){
		"low above high":      func(p *Policy) { p.Low = 0.9 },
		"high above critical": func(p *Policy) { p.High = 0.99 },
		"critical above 1":    func(p *Policy) { p.Critical = 1.1 },
		"no watermark":        func(p *Policy) { p.Low = 0 },
		"negative age":        func(p *Policy) { p.MinAge = -1 },
		"negative quiet":      func(p *Policy) { p.Quiet = -1 },
		"negative wait":       func(p *Policy) { p.MaxWait = -1 },
		"broken glob":         func(p *Policy) { p.Keep = []string{"[redis"} },
		"empty glob":          func(p *Policy) { p.Keep = []string{""} },
	} {
		p := DefaultPolicy()
		edit(&p)
		if p.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
