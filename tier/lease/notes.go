package lease

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Noted is what Redis has under a key. Ages are by the clock of Redis, so that those of the nodes may
// differ.
type Noted struct {
	Value string
	Age   time.Duration // since it was true; never negative
	Left  time.Duration // until it is forgotten; 0: there is none
}

// notes returns of each key its value and the ms until it is forgotten, and at the end the time in ms.
var notes = redis.NewScript(whole + `
local all = {}
for i, key in ipairs(KEYS) do
  all[2 * i - 1] = redis.call('GET', key) or ''
  all[2 * i] = redis.call('PTTL', key)
end
local t = redis.call('TIME')
all[#all + 1] = t[1] * 1000 + math.floor(t[2] / 1000)
return all`)

// Notes returns what any node has noted under the keys, in their order.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Notes(ctx context.Context, keys ...string) ([]Noted, error) {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = r.notes + key
	}
	var all []any
	err := r.call(ctx, func(ctx context.Context) (err error) {
		all, err = notes.Run(ctx, r.client, names).Slice()
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(all) != 2*len(keys)+1 {
		return nil, errNotes
	}
	now, ok := all[len(all)-1].(int64)
	found := make([]Noted, len(keys))
	for i := range found {
		value, isText := all[2*i].(string)
		left, isNumber := all[2*i+1].(int64)
		if !isText || !isNumber || !ok {
			return nil, errNotes
		}
		if left > 0 {
			found[i] = parseNote(value, now)
			found[i].Left = time.Duration(left) * time.Millisecond
		}
	}
	return found, nil
}

var errNotes = errors.New("redis: it has notes that this program doesn't know")

// parseNote reads "<ms since 1970> <value>".
func parseNote(s string, now int64) Noted {
	at, value, _ := strings.Cut(s, " ")
	since, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return Noted{}
	}
	return Noted{Value: value, Age: time.Duration(max(now-since, 0)) * time.Millisecond}
}

// note sets KEYS[1] to ARGV[1] for ARGV[3] ms, unless what is there is newer than ARGV[2] ms. What is
// ahead of the clock, because that was set back, isn't.
var note = redis.NewScript(whole + `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local at = now - ARGV[2]
local old = tonumber(string.match(redis.call('GET', KEYS[1]) or '', '^%d+') or 0)
if old > at and old <= now then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f ', at) .. ARGV[1], 'PX', ARGV[3])
return 1`)

// Note tells the other nodes what was true a while ago, for a time. What is newer stays.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Note(ctx context.Context, key, value string, age, ttl time.Duration) error {
	return r.call(ctx, func(ctx context.Context) error {
		return note.Run(ctx, r.client, []string{r.notes + key}, value, age.Milliseconds(), ttl.Milliseconds()).Err()
	})
}

// lengthen makes KEYS[1] last for ARGV[1] ms, unless it lasts longer.
var lengthen = redis.NewScript(whole + `
if redis.call('PTTL', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], '0 ', 'PX', ARGV[1])
return 1`)

// Lengthen makes a note without a value last for that long at least.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Lengthen(ctx context.Context, key string, left time.Duration) error {
	return r.call(ctx, func(ctx context.Context) error {
		return lengthen.Run(ctx, r.client, []string{r.notes + key}, max(left.Milliseconds(), 1)).Err()
	})
}
