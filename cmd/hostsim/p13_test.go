package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"guardhouse/appliance/hgsa"
)

// TestP13_01_TheClientSaysThatItSendsAndTakesJSON; see p13_test.go of package appliance/hgsa.
func TestP13_01_TheClientSaysThatItSendsAndTakesJSON(t *testing.T) {
	var sent http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent = r.Header
		_, _ = io.WriteString(w, "{}")
	}))
	defer server.Close()
	if _, _, err := exchange(context.Background(), http.DefaultClient, http.MethodPost, server.URL, hgsa.ContentType, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if sent.Get("Content-Type") != "application/json; charset=utf-8" || sent.Get("Accept") != "application/json" {
		t.Errorf("%v", sent)
	}
}
