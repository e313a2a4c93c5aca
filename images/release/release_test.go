package release

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/update"
	"guardhouse/images"
	"guardhouse/images/debian"
	"guardhouse/images/keys"
	"guardhouse/images/measure"
	"guardhouse/images/uki"
	"guardhouse/initramfs"
)

// sets are made once: five RSA keys each.
var sets = sync.OnceValues(func() (map[string]*keys.Set, error) {
	dir, err := os.MkdirTemp("", "release-keys-")
	if err != nil {
		return nil, err
	}
	list := map[string]*keys.Set{}
	for _, name := range []string{"Contoso 2026", "Contoso 2027", "evaluation"} {
		if list[name], err = keys.Make(filepath.Join(dir, name), name, name == "evaluation", time.Unix(1795000000, 0)); err != nil {
			return nil, err
		}
	}
	return list, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if list, err := sets(); err == nil {
		os.RemoveAll(filepath.Dir(list["evaluation"].Dir))
	}
	os.Exit(code)
}

func set(t *testing.T, name string) *keys.Set {
	t.Helper()
	list, err := sets()
	if err != nil {
		t.Fatal(err)
	}
	return list[name]
}

// recipe is what a build is made from; a test changes one thing in it that must not be.
type recipe struct {
	release                      initramfs.Release
	kernel                       string
	keys, signs, policy, trusted *keys.Set   // named by the build; sign the image; the policy key inside; the release key inside
	also                         []*keys.Set // sign image and policies as well
	policies                     []*keys.Set // who sign the boots
	number                       uint64      // in the boots
	dbx                          [][]byte
}

func recipeOf(s *keys.Set, also ...*keys.Set) recipe {
	return recipe{initramfs.Release{Version: "1.4", Epoch: 1795000000, Number: 7, Evaluation: s.Evaluation}, "6.1.0-test", s, s, s, s, also, append([]*keys.Set{s}, also...), 7, nil}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// image is the boot image of a recipe: the real stub, the rest tiny.
func (r recipe) image(t *testing.T) []byte {
	t.Helper()
	var list initramfs.List
	if err := errors.Join(list.AddSkeleton(r.release), list.Add(initramfs.Entry{Path: update.KeysFile, Kind: initramfs.File, Perm: 0o644, Data: r.trusted.Public(keys.Release)})); err != nil {
		t.Fatal(err)
	}
	var raw, packed bytes.Buffer
	if err := errors.Join(list.WriteCPIO(&raw), initramfs.Compress(&packed, &raw)); err != nil {
		t.Fatal(err)
	}
	img := must(uki.Build(must(os.ReadFile(images.StubPath))(t), []uki.Section{{Name: uki.OSRel, Data: []byte(r.release.Text())}, {Name: uki.Cmdline, Data: []byte("quiet")},
		{Name: uki.Uname, Data: []byte(r.kernel)}, {Name: uki.PCRPKey, Data: r.policy.Public(keys.Policy)}, {Name: uki.Linux, Data: []byte("kernel")}, {Name: uki.Initrd, Data: packed.Bytes()}}))(t)
	for _, s := range append([]*keys.Set{r.signs}, r.also...) {
		img = must(uki.Sign(img, s.Certs[keys.DB], must(s.Signer(keys.DB))(t)))(t)
	}
	return img
}

// folder is the recipe's output as images.Build leaves it.
func (r recipe) folder(t *testing.T) string {
	t.Helper()
	dir, img := t.TempDir(), r.image(t)
	var signers []crypto.Signer
	for _, s := range r.policies {
		signers = append(signers, must(s.Signer(keys.Policy))(t))
	}
	f := must(measure.SignPolicies(img, r.number, must(images.Boots(r.signs, r.also, r.dbx))(t), signers...))(t)
	policy := must(json.Marshal(f))(t)
	m := images.Manifest{Name: "guardhouse", Version: r.release.Version, BuildEpoch: r.release.Epoch, Release: r.release.Number, Commit: "0123abcd", KeySet: r.keys.Name, Complete: true,
		Kernel: "6.1.0-test", Go: "go1.26.8", GoModules: []images.GoModule{{Path: "example.org/Mod", Version: "v1.2.3", Sum: "h1:x"}}, Debian: []debian.Package{{Name: "libc6", Version: "2.36-9+deb12u1", Source: "glibc", SourceVersion: "2.36-9+deb12u1"}},
		HSM: images.HSMRecord{Manifest: pack.Manifest{Name: "p11", Version: "1", Files: []pack.File{{Path: "/usr/lib/p11.so", SHA256: strings.Repeat("ab", 32)}}}, SHA256: strings.Repeat("cd", 32)}}
	for name, data := range map[string][]byte{images.UKIFile: img, images.PolicyFile: policy} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		m.Outputs = append(m.Outputs, images.FileRecord{Path: name, Size: int64(len(data)), SHA256: update.PartOf(data).SHA256})
	}
	slices.SortFunc(m.Outputs, func(a, b images.FileRecord) int { return strings.Compare(a.Path, b.Path) })
	if err := errors.Join(r.keys.WritePublic(filepath.Join(dir, images.KeysDir)), os.WriteFile(filepath.Join(dir, images.ManifestFile), must(json.Marshal(m))(t), 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAReleaseIsCheckedAndIsTheSameBytesTwice(t *testing.T) {
	ours := set(t, "Contoso 2026")
	dbx := keys.HashList(ours.Owner, [32]byte{9})
	r := recipeOf(ours)
	r.dbx = [][]byte{dbx}
	dir := r.folder(t)
	var first, second, text bytes.Buffer
	report, err := Make(&first, Options{Image: dir, Keys: ours, DBX: r.dbx, Notes: "faster\nsafer"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Make(&second, Options{Image: dir, Keys: ours, DBX: r.dbx, Notes: "faster\nsafer"}); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("two bundles of one image differ (%v)", err)
	}
	if len(report.Boots) != 2 || !report.Boots[0].Known || !report.Boots[1].Known || report.SignedBy != update.KeyID(ours.RSA(keys.Release)) {
		t.Errorf("%+v", report)
	}
	report.Print(&text)
	for _, want := range []string{"guardhouse 1.4, release 7", "6.1.0-test", "go1.26.8", "0123abcd", "p11 1", "faster\n  safer", "Contoso 2026, dbx empty"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("not told: %s\n%s", want, text.String())
		}
	}
	// With the public half alone, and without knowing the dbx: what can't be proved is said so.
	public, err := keys.Load(filepath.Join(dir, images.KeysDir))
	if err != nil {
		t.Fatal(err)
	}
	report, err = Verify(bytes.NewReader(first.Bytes()), Expect{Keys: public})
	if err != nil || !report.Boots[0].Known || report.Boots[1].Known {
		t.Errorf("%+v %v", report, err)
	}
	// The SBOM lies beside the image with the same bytes.
	b := must(update.Open(bytes.NewReader(first.Bytes()), ours.RSA(keys.Release)))(t)
	var sbom bytes.Buffer
	if err := b.SBOM(&sbom); err != nil || !bytes.Equal(sbom.Bytes(), must(os.ReadFile(filepath.Join(dir, SBOMFile)))(t)) {
		t.Errorf("%v", err)
	}
	for _, want := range []string{"pkg:golang/example.org/mod@v1.2.3", "pkg:golang/stdlib@1.26.8", "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64", "/usr/lib/p11.so", "2026-11-18T", b.Manifest.UKI.SHA256} {
		if !strings.Contains(sbom.String(), want) {
			t.Errorf("SBOM has no %s\n%s", want, sbom.String())
		}
	}
}

func TestTellsWhichComponentsChanged(t *testing.T) {
	ours, next := set(t, "Contoso 2026"), set(t, "Contoso 2027")
	var bundle bytes.Buffer
	report := must(Make(&bundle, Options{Image: recipeOf(ours).folder(t), Keys: ours}))(t)
	m, before, err := Inventory(bytes.NewReader(bundle.Bytes()), next, ours)
	if err != nil || m.Number != 7 || len(Changes(before, report.Components)) != 0 {
		t.Errorf("%+v %v %v", m, before, err)
	}
	if _, _, err := Inventory(bytes.NewReader(bundle.Bytes()), next); !errors.Is(err, update.ErrUntrusted) {
		t.Errorf("an inventory that nobody known signed: %v", err)
	}
	before["go"], before["debian zlib1g"] = "go1.26.7", "1.2"
	delete(before, "hsm-pack")
	if got := Changes(before, report.Components); !slices.Equal(got, []string{"debian zlib1g 1.2 is gone", "go go1.26.8, was go1.26.7", "hsm-pack 1 is new"}) {
		t.Errorf("%q", got)
	}
}

// Each of these would leave a node with an image that it can't start, can't open its disk with, or can't replace.
func TestRefusesToReleaseWhatWouldStrandANode(t *testing.T) {
	ours, next := set(t, "Contoso 2026"), set(t, "Contoso 2027")
	for name, c := range map[string]struct {
		change func(*recipe)
		want   string
	}{
		"image signed by another db key":       {func(r *recipe) { r.signs = next }, "not by Contoso 2026 db"},
		"another policy key in the image":      {func(r *recipe) { r.policy = next }, "policy key"},
		"another release key in the image":     {func(r *recipe) { r.trusted = next }, update.KeysFile},
		"built with another set":               {func(r *recipe) { *r = recipeOf(next) }, "no further update"},
		"another version inside":               {func(r *recipe) { r.release.Evaluation = true }, "version"},
		"another kernel inside":                {func(r *recipe) { r.kernel = "5.0" }, "kernel"},
		"boots signed by another policy key":   {func(r *recipe) { r.policies = []*keys.Set{next} }, "recovery secret"},
		"boots of another release":             {func(r *recipe) { r.number = 8 }, "release 8"},
		"boots without one of the dbx we have": {func(r *recipe) { r.dbx = nil }, "dbx"},
	} {
		r := recipeOf(ours)
		c.change(&r)
		var out bytes.Buffer
		_, err := Make(&out, Options{Image: r.folder(t), Keys: ours, DBX: [][]byte{keys.HashList(ours.Owner, [32]byte{9})}})
		if !errors.Is(err, ErrRelease) || !strings.Contains(err.Error(), c.want) || out.Len() != 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, out.Len())
		}
	}
}

func TestRefusesAnOutputThatTheBuildDidNotRecord(t *testing.T) {
	ours := set(t, "Contoso 2026")
	for name, spoil := range map[string]func(dir string) error{
		"image": func(dir string) error { return os.WriteFile(filepath.Join(dir, images.UKIFile), []byte("MZ"), 0o644) },
		"policies": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, images.PolicyFile), []byte("{}"), 0o644)
		},
		"incomplete": func(dir string) error {
			return edit(filepath.Join(dir, images.ManifestFile), `"complete":true`, `"complete":false`)
		},
	} {
		dir := recipeOf(ours).folder(t)
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Make(&bytes.Buffer{}, Options{Image: dir, Keys: ours}); !errors.Is(err, ErrRelease) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Make(&bytes.Buffer{}, Options{Image: t.TempDir(), Keys: ours}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
}

func edit(name, old, text string) error {
	b, err := os.ReadFile(name)
	if err != nil || !bytes.Contains(b, []byte(old)) {
		return errors.Join(err, errors.New("nothing to change"))
	}
	return os.WriteFile(name, bytes.ReplaceAll(b, []byte(old), []byte(text)), 0o644)
}

func TestRefusesABundleOfAnotherImagesParts(t *testing.T) {
	ours := set(t, "Contoso 2026")
	dir := recipeOf(ours).folder(t)
	m := must(readManifest(dir))(t)
	parts := update.Parts{UKI: must(os.ReadFile(filepath.Join(dir, images.UKIFile)))(t), Policy: must(os.ReadFile(filepath.Join(dir, images.PolicyFile)))(t), SBOM: must(SBOM(m))(t)}
	other := m
	other.Outputs = []images.FileRecord{{Path: images.UKIFile, SHA256: strings.Repeat("00", 32)}}
	foreign := recipeOf(ours)
	foreign.kernel = "6.1.1"
	for name, c := range map[string]struct {
		role   string
		change func(*update.Manifest, *update.Parts)
		want   error
	}{
		"signed by the db key":     {keys.DB, func(*update.Manifest, *update.Parts) {}, update.ErrUntrusted},
		"signed by the policy key": {keys.Policy, func(*update.Manifest, *update.Parts) {}, update.ErrUntrusted},
		"SBOM of another image":    {keys.Release, func(_ *update.Manifest, p *update.Parts) { p.SBOM = must(SBOM(other))(t) }, ErrRelease},
		"SBOM that is none":        {keys.Release, func(_ *update.Manifest, p *update.Parts) { p.SBOM = []byte("{}") }, ErrRelease},
		"image that is none":       {keys.Release, func(_ *update.Manifest, p *update.Parts) { p.UKI = []byte("MZ") }, ErrRelease},
		"boots of another image": {keys.Release, func(_ *update.Manifest, p *update.Parts) {
			p.Policy = must(os.ReadFile(filepath.Join(foreign.folder(t), images.PolicyFile)))(t)
		}, ErrRelease},
		"boots that are none":        {keys.Release, func(_ *update.Manifest, p *update.Parts) { p.Policy = []byte("{}") }, ErrRelease},
		"manifest of another number": {keys.Release, func(m *update.Manifest, _ *update.Parts) { m.Number++ }, ErrRelease},
		"evaluation left out":        {keys.Release, func(m *update.Manifest, _ *update.Parts) { m.Evaluation = true }, ErrRelease},
	} {
		manifest, p := manifestOf(m, Options{Keys: ours}), parts
		c.change(&manifest, &p)
		var b bytes.Buffer
		if err := update.Write(&b, manifest, p, must(ours.Signer(c.role))(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(&b, Expect{Keys: ours}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEvaluationAndProductionNeverMeet(t *testing.T) {
	production, trial := set(t, "Contoso 2026"), set(t, "evaluation")
	if _, err := Make(&bytes.Buffer{}, Options{Image: recipeOf(production).folder(t), Keys: trial}); !errors.Is(err, ErrRelease) {
		t.Errorf("an evaluation set released a production image: %v", err)
	}
	if _, err := Make(&bytes.Buffer{}, Options{Image: recipeOf(production).folder(t), Keys: production, Also: []*keys.Set{trial}}); !errors.Is(err, keys.ErrMixed) {
		t.Errorf("an evaluation set signed a production image as well: %v", err)
	}
	var bundle, text bytes.Buffer
	report := must(Make(&bundle, Options{Image: recipeOf(trial).folder(t), Keys: trial}))(t)
	if report.Print(&text); !strings.Contains(text.String(), "EVALUATION ONLY") {
		t.Errorf("not told:\n%s", text.String())
	}
	if _, err := update.Open(bytes.NewReader(bundle.Bytes()), production.RSA(keys.Release)); !errors.Is(err, update.ErrUntrusted) {
		t.Errorf("a production node takes it: %v", err)
	}
}

// While keys change, one release opens the disk under the old and under the new policy key, in every state of the firmware, and nodes with
// either release key take it.
func TestOneReleaseCarriesNodesFromTheOldKeysToTheNew(t *testing.T) {
	old, next := set(t, "Contoso 2026"), set(t, "Contoso 2027")
	var bundle bytes.Buffer
	report, err := Make(&bundle, Options{Image: recipeOf(next, old).folder(t), Keys: next, Also: []*keys.Set{old}})
	if err != nil {
		t.Fatal(err)
	}
	opens := map[string]int{}
	for _, b := range report.Boots {
		if !b.Known {
			t.Errorf("%s is nobody's", b.Name)
		}
		opens[b.Key]++
	}
	for _, s := range []*keys.Set{old, next} {
		if n := opens[update.KeyID(s.RSA(keys.Policy))]; n != len(keys.Rollover(old, next)) {
			t.Errorf("%s: %d boots", s.Name, n)
		}
		if _, err := update.Open(bytes.NewReader(bundle.Bytes()), []*rsa.PublicKey{s.RSA(keys.Release)}...); err != nil {
			t.Errorf("a node that trusts %s: %v", s.Name, err)
		}
	}
	// After that the old certificate may go into dbx, but then nothing that it has signed starts any more.
	if _, err := images.Boots(next, []*keys.Set{old}, [][]byte{keys.CertList(next.Owner, old.Certs[keys.DB])}); err == nil {
		t.Error("an image with the forbidden signature was predicted to start")
	}
}
