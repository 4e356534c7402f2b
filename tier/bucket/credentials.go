package bucket

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// filesAge is how long the keys in files are used before the files are read again.
	filesAge = time.Minute

	// chainPause is how long after no credentials were found they are looked for again: to ask
	// for those of an instance takes time where there is no such service.
	chainPause = 30 * time.Second

	// chainDeadline is how long a service that gives credentials may take.
	chainDeadline = 5 * time.Second
)

// newCredentials returns where the keys come from.
func newCredentials(c Config) *credentials.Credentials {
	if c.AccessKeyFile != "" {
		return credentials.New(&keyFiles{access: c.AccessKeyFile, secret: c.SecretKeyFile})
	}
	return credentials.New(newChain(&credentials.IAM{Client: &http.Client{Timeout: chainDeadline}, Region: c.Region}))
}

// keyFiles are keys in two files. Package credentials calls its methods one at a time.
type keyFiles struct {
	credentials.Expiry
	access, secret string
}

// Retrieve reads the files.
// Errors: those of reading, an empty file.
func (k *keyFiles) Retrieve() (v credentials.Value, err error) {
	if v.AccessKeyID, err = readKey(k.access); err != nil {
		return credentials.Value{}, err
	}
	if v.SecretAccessKey, err = readKey(k.secret); err != nil {
		return credentials.Value{}, err
	}
	v.SignerType = credentials.SignatureV4
	k.SetExpiration(time.Now().Add(filesAge), 0)
	return v, nil
}

// RetrieveWithCredContext is Retrieve.
func (k *keyFiles) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	return k.Retrieve()
}

// readKey reads a file that has one line.
func readKey(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("a key of the bucket can't be read: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" {
		return "", fmt.Errorf("a key of the bucket is missing: %s is empty", file)
	}
	return key, nil
}

// errNoCredentials: to go on without any would be taken for a bucket that refuses.
var errNoCredentials = errors.New("no credentials for the bucket: neither access_key_file and secret_key_file, nor the environment, ~/.aws/credentials, web identity or metadata of the instance have any")

// chain is the standard chain, which says when it has found nothing, and then waits before it
// looks again. Package credentials calls its methods one at a time.
type chain struct {
	credentials.Chain
	next time.Time // when to look again
}

func newChain(instance credentials.Provider) *chain {
	return &chain{Chain: credentials.Chain{Providers: []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, instance}}}
}

// RetrieveWithCredContext asks one after the other.
// Errors: errNoCredentials.
func (c *chain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	if time.Now().Before(c.next) {
		return credentials.Value{}, errNoCredentials
	}
	v, err := c.Chain.RetrieveWithCredContext(cc)
	if err == nil && v.SignerType.IsAnonymous() {
		c.next = time.Now().Add(chainPause)
		return credentials.Value{}, errNoCredentials
	}
	return v, err
}

// Retrieve is RetrieveWithCredContext without a context.
func (c *chain) Retrieve() (credentials.Value, error) { return c.RetrieveWithCredContext(nil) }
