package settings

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Shared is what this node shares with others.
type Shared struct {
	Bucket struct {
		Endpoint      Text // URL; "": there is no bucket
		Name          Text
		Prefix        Text
		Region        Text
		AccessKeyFile Text
		SecretKeyFile Text
		PathStyle     Bool
		CAFile        Text
	}
	Lease struct {
		Redis        Text // host:port; "": there are no leases
		Username     Text
		PasswordFile Text
		TLS          Bool
		CAFile       Text
	}
	Budget    ByteCount // of the bucket; 0: nothing is deleted from it
	Advertise Text      // URL by which other nodes reach the pull port of this one
}

func (s *Shared) table() []row {
	b, l := &s.Bucket, &s.Lease
	return []row{
		{key: "bucket", rows: []row{
			{key: "endpoint", value: &b.Endpoint},
			{key: "name", value: &b.Name},
			{key: "prefix", value: &b.Prefix},
			{key: "region", value: &b.Region},
			{key: "access_key_file", value: &b.AccessKeyFile},
			{key: "secret_key_file", value: &b.SecretKeyFile},
			{key: "path_style", value: &b.PathStyle},
			{key: "ca_file", value: &b.CAFile},
		}},
		{key: "lease", rows: []row{
			{key: "redis", value: &l.Redis},
			{key: "username", value: &l.Username},
			{key: "password_file", value: &l.PasswordFile},
			{key: "tls", value: &l.TLS},
			{key: "ca_file", value: &l.CAFile},
		}},
		{key: "budget", value: &s.Budget, defValue: "0"},
		{key: "advertise", value: &s.Advertise},
	}
}

// On reports whether anything is shared.
func (s *Shared) On() bool { return s.Bucket.Endpoint != "" || s.Lease.Redis != "" }

// check finds what can't work.
func (s *Shared) check() error {
	b, l := &s.Bucket, &s.Lease
	switch {
	case (b.Endpoint == "") != (b.Name == ""):
		return errors.New("shared.bucket.endpoint and shared.bucket.name belong together")
	case (b.AccessKeyFile == "") != (b.SecretKeyFile == ""):
		return errors.New("shared.bucket.access_key_file and shared.bucket.secret_key_file belong together")
	case s.Budget.Bytes < 0:
		return errors.New("shared.budget can't be negative")
	case s.Budget.Bytes > 0 && b.Endpoint == "":
		return errors.New("shared.budget is about the bucket: it needs shared.bucket")
	case l.Redis != "" && s.Advertise == "":
		return errors.New("shared.lease needs shared.advertise, the URL by which the other nodes reach this one")
	case l.CAFile != "" && !bool(l.TLS):
		return errors.New("shared.lease.ca_file makes no sense without shared.lease.tls")
	}
	if l.Redis != "" {
		if strings.HasPrefix(string(l.Redis), "unix:") || strings.HasPrefix(string(l.Redis), ":") {
			return errors.New("shared.lease.redis is a host and a port that all nodes reach, like redis.example.com:6379")
		}
		if err := CheckAddress(string(l.Redis)); err != nil {
			return fmt.Errorf("shared.lease.redis: %w", err)
		}
	}
	for key, value := range map[string]Text{"shared.bucket.endpoint": b.Endpoint, "shared.advertise": s.Advertise} {
		if value == "" {
			continue
		}
		u, err := url.Parse(string(value))
		if strings.Contains(string(value), "@") || err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return fmt.Errorf("%s is not an http or https URL of a host, like https://cache1.example.com:5000", key)
		}
	}
	return nil
}
