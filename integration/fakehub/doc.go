// Package fakehub is a Docker Hub for tests: a registry, a token service and a CDN.
package fakehub
