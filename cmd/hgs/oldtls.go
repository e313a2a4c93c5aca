package main

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"

	"guardhouse/appliance/intake"
	"guardhouse/appliance/policy"
)

// What callers with an old TLS may make us note in a minute: one note for each source, so many in all.
const (
	oldTLSPerSource = 1
	oldTLSInAll     = 30
	oldTLSNote      = time.Second
	maxServerName   = 128
)

// oldTLS notes who offers no TLS 1.2. Such a handshake fails and nobody but the caller would learn why: Windows Server 2016 offers TLS 1.0
// only, unless SystemDefaultTlsVersions is set. All that is known of the caller is its address and the name it asked for, both unproved.
type oldTLS struct {
	notes    intake.Counter
	bootTime func() time.Duration
	stamp    func() policy.Stamp
	observe  func(context.Context, []policy.Observation)
}

// look is tls.Config.GetConfigForClient: it changes nothing of the handshake.
func (o *oldTLS) look(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if len(hello.SupportedVersions) == 0 || slices.Max(hello.SupportedVersions) >= tls.VersionTLS12 {
		return nil, nil
	}
	remote := hello.Conn.RemoteAddr()
	source, _, err := net.SplitHostPort(remote.String())
	now := o.bootTime()
	if err != nil || !o.notes.Allow("from "+sourceOf(remote).String(), oldTLSPerSource, now) || !o.notes.Allow("all", oldTLSInAll, now) {
		return nil, nil
	}
	name := strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, hello.ServerName[:min(len(hello.ServerName), maxServerName)])
	ctx, cancel := context.WithTimeout(context.Background(), oldTLSNote)
	defer cancel()
	at := o.stamp()
	o.observe(ctx, []policy.Observation{{Kind: policy.ObservedOldTLS, Subject: source, First: at, Last: at, Count: 1,
		Facts: map[string]string{"offered": tls.VersionName(slices.Max(hello.SupportedVersions)), "name": name}}})
	return nil, nil
}
