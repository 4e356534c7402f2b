package dockerhost

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// object is a JSON object, such as daemon.json, that keeps its keys in order and the values
// that it doesn't know as they are.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

const mirrorsKey = "registry-mirrors"

// parseObject reads an object. An empty file is an empty object, as for the daemon.
func parseObject(body []byte) (object, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("it is not a JSON object"), err)
	}
	var o object
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{key: key.(string)} // the token before a value is a key
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		if o.index(m.key) >= 0 {
			return nil, fmt.Errorf("%q is there twice", m.key)
		}
		o = append(o, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows the object")
	}
	return o, nil
}

func (o object) index(key string) int {
	return slices.IndexFunc(o, func(m member) bool { return m.key == key })
}

// mirrors is the list of mirrors; nil when there is none.
func (o object) mirrors() ([]string, error) {
	i := o.index(mirrorsKey)
	if i < 0 {
		return nil, nil
	}
	var list []string
	if err := json.Unmarshal(o[i].value, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", mirrorsKey, err)
	}
	return list, nil
}

// setMirrors sets the list, and an empty one too: a daemon that reloads a file without a
// list keeps the mirrors that it has.
func (o *object) setMirrors(mirrors []string) {
	value, _ := json.Marshal(append([]string{}, mirrors...)) // strings always work
	if i := o.index(mirrorsKey); i < 0 {
		*o = append(*o, member{mirrorsKey, value})
	} else {
		(*o)[i].value = value
	}
}

// bytes is the object, indented.
func (o object) bytes() []byte {
	var flat, out bytes.Buffer
	flat.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			flat.WriteByte(',')
		}
		key, _ := json.Marshal(m.key)
		flat.Write(key)
		flat.WriteByte(':')
		flat.Write(m.value)
	}
	flat.WriteByte('}')
	_ = json.Indent(&out, flat.Bytes(), "", "  ") // the parts are valid
	out.WriteByte('\n')
	return out.Bytes()
}
