package verb

import (
	"cmp"
	"context"
	"fmt"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// sitePut stores one file of the site's own data for the HSM pack on this node's sealed disk. The HSM process checks name and size and
// writes the audit entry; what is in the file appears nowhere.
func sitePut(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	defer clear(stdin)
	f, err := rpc.HSMSitePut.Call(ctx, s.Node.HSM, rpc.HSMSiteRequest{Actor: s.Actor, Name: a.Get("name"), Data: stdin})
	if err != nil {
		return Output{}, siteFailure(err)
	}
	p := new(Page).Line("%s is stored: %d bytes, SHA-256 %s", f.Name, f.Size, f.SHA256).Line("The module and its helper are started anew with it.")
	return Output{Text: p, Value: f}, nil
}

func siteRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	f, err := rpc.HSMSiteRemove.Call(ctx, s.Node.HSM, rpc.HSMSiteRequest{Actor: s.Actor, Name: a.Get("name")})
	if err != nil {
		return Output{}, siteFailure(err)
	}
	return Output{Text: new(Page).Line("%s is removed; it had SHA-256 %s", f.Name, f.SHA256), Value: f}, nil
}

func siteFailure(err error) error {
	f := Explain(err)
	if f.Kind == rpc.ErrRefused.Kind && f.Remedy == "" {
		f.Remedy = "hsm site-data list shows the names that the pack declares"
	}
	return f
}

func siteList(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.HSMSiteList.Call(ctx, s.Node.HSM, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Field("pack", "%s", cmp.Or(r.Pack, "none"))
	if len(r.Files) == 0 {
		p.Line("The pack declares no site data.")
		return Output{Text: p, Value: r}, nil
	}
	var rows [][]string
	var missing []policy.Problem
	for _, f := range r.Files {
		state := "sha256 " + f.SHA256[:min(16, len(f.SHA256))]
		switch {
		case f.SHA256 == "":
			state = "missing"
			missing = append(missing, policy.Problem{What: f.Name + " is missing", Remedy: "hsm site-data put " + f.Name + " < FILE"})
		case !f.Declared:
			state += ", of no use to this pack"
		}
		rows = append(rows, []string{f.Name, fmt.Sprint(f.Size), state})
	}
	p.Blank().Table([]string{"NAME", "BYTES", "STATE"}, rows)
	problems(p, missing)
	return Output{Text: p, Value: r}, nil
}
