// Package e2e tests the hotpatch binary against live processes.
package e2e
