package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of tenants that bring keys of their own (row B20).
const (
	MaxTenants       = 256
	MaxTenantClasses = 16
	MaxTenantQuota   = 1_000_000
)

// Tenant is somebody whose signing and encryption keys were brought into the token (row B20, "bring your own key"). Keys name their
// tenant in Key.Tenant; they are never primary.
type Tenant struct {
	Name     string   `json:"name"`
	Disabled bool     `json:"disabled,omitempty"` // none of its keys opens anything
	Classes  []string `json:"classes,omitempty"`  // host classes for which its keys are used, sorted; empty = every host class
	// PerMinute is the tenant's quota: how many transport keys its keys open in a minute on each node; 0 = no bound but that of hosts.
	PerMinute int    `json:"perMinute,omitempty"`
	Note      string `json:"note,omitempty"`
	Added     Stamp  `json:"added"`
}

// TenantAdd records a tenant. Classes as in Tenant.
type TenantAdd struct {
	Name      string   `json:"name"`
	Classes   []string `json:"classes,omitempty"`
	PerMinute int      `json:"perMinute,omitempty"`
	Note      string   `json:"note,omitempty"`
}

// TenantSet changes the fields that are not nil; an empty list of classes means every host class.
type TenantSet struct {
	Name      string    `json:"name"`
	Disabled  *bool     `json:"disabled,omitempty"`
	Classes   *[]string `json:"classes,omitempty"`
	PerMinute *int      `json:"perMinute,omitempty"`
}

// TenantKeys are the keys of a tenant, in no order.
func (s State) TenantKeys(name string) []Key {
	var list []Key
	for _, k := range s.Keys {
		if k.Tenant != "" && k.Tenant == name {
			list = append(list, k)
		}
	}
	return list
}

// TenantRefusal says why a key may not be used for a host of this class, because of the tenant it belongs to; empty where it may. A host
// whose class is not known (class "") is in none that a tenant names. It does not look at Key.Enabled.
func (s State) TenantRefusal(k Key, class string) string {
	if k.Tenant == "" {
		return ""
	}
	t, ok := s.Tenants[k.Tenant]
	switch {
	case !ok:
		return fmt.Sprintf("key %.16s belongs to the tenant %s, which is not recorded", k.Ref, k.Tenant)
	case t.Disabled:
		return fmt.Sprintf("key %.16s belongs to the tenant %s, which is disabled", k.Ref, k.Tenant)
	case len(t.Classes) > 0 && !slices.Contains(t.Classes, class):
		if class == "" {
			return fmt.Sprintf("key %.16s belongs to the tenant %s and is used for hosts of the classes %s only; this host's class is not known here", k.Ref, k.Tenant, strings.Join(t.Classes, ", "))
		}
		return fmt.Sprintf("key %.16s belongs to the tenant %s and is used for hosts of the classes %s only; this host is of the class %s", k.Ref, k.Tenant, strings.Join(t.Classes, ", "), class)
	}
	return ""
}

func checkClasses(c Command, classes []string) ([]string, error) {
	if len(classes) > MaxTenantClasses {
		return nil, &Refused{c.Kind, fmt.Sprintf("%d host classes are named, %d are the limit", len(classes), MaxTenantClasses), ""}
	}
	for _, class := range classes {
		if !ValidName(class) {
			return nil, &Refused{c.Kind, fmt.Sprintf("%.64q is not a host class", class), "see host list for classes"}
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(classes))), nil
}

func checkQuota(c Command, n int) error {
	if n < 0 || n > MaxTenantQuota {
		return &Refused{c.Kind, fmt.Sprintf("a quota of %d a minute is not one", n), fmt.Sprintf("give 1 to %d, or 0 for no bound", MaxTenantQuota)}
	}
	return nil
}

func applyTenantAdd(s *State, c Command) (Result, error) {
	b, err := decode[TenantAdd](c)
	if err != nil {
		return Result{}, err
	}
	if !ValidName(b.Name) || !validText(b.Note, MaxNote) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid name, or the note can't be shown", b.Name), "use letters, digits, dots and dashes"}
	}
	if _, ok := s.Tenants[b.Name]; ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the tenant %s exists", b.Name), "change it with tenant set"}
	}
	if len(s.Tenants) >= MaxTenants {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d tenants are recorded, the limit", MaxTenants), "remove one first"}
	}
	classes, err := checkClasses(c, b.Classes)
	if err != nil {
		return Result{}, err
	}
	if err := checkQuota(c, b.PerMinute); err != nil {
		return Result{}, err
	}
	t := Tenant{Name: b.Name, Classes: classes, PerMinute: b.PerMinute, Note: b.Note, Added: c.At}
	put(&s.Tenants, b.Name, t)
	return Result{Message: "tenant " + b.Name + " added, " + t.rules(), Subject: b.Name}, nil
}

func applyTenantSet(s *State, c Command) (Result, error) {
	b, err := decode[TenantSet](c)
	if err != nil {
		return Result{}, err
	}
	t, ok := s.Tenants[b.Name]
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no tenant %.64q", b.Name), "see tenant list"}
	}
	if b.Disabled != nil {
		t.Disabled = *b.Disabled
	}
	if b.Classes != nil {
		if t.Classes, err = checkClasses(c, *b.Classes); err != nil {
			return Result{}, err
		}
	}
	if b.PerMinute != nil {
		if err := checkQuota(c, *b.PerMinute); err != nil {
			return Result{}, err
		}
		t.PerMinute = *b.PerMinute
	}
	put(&s.Tenants, b.Name, t)
	state := "enabled"
	if t.Disabled {
		state = "disabled: its keys open nothing"
	}
	return Result{Message: fmt.Sprintf("tenant %s is %s, %s", t.Name, state, t.rules()), Subject: t.Name}, nil
}

func classText(classes []string) string {
	if len(classes) == 0 {
		return "for every host class"
	}
	return "for hosts of the classes " + strings.Join(classes, ", ")
}

// Quota is the tenant's quota for people; "" where there is none.
func (t Tenant) Quota() string {
	if t.PerMinute == 0 {
		return ""
	}
	return fmt.Sprintf("at most %d transport keys a minute on each node", t.PerMinute)
}

// rules are the tenant's classes and its quota.
func (t Tenant) rules() string {
	text := classText(t.Classes)
	if q := t.Quota(); q != "" {
		text += ", " + q
	}
	return text
}

func applyTenantRemove(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	if _, ok := s.Tenants[b.Name]; !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no tenant %.64q", b.Name), "see tenant list"}
	}
	if n := len(s.TenantKeys(b.Name)); n > 0 {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d keys of the tenant %s are recorded", n, b.Name), "disable and remove them first"}
	}
	delete(s.Tenants, b.Name)
	return Result{Message: "tenant " + b.Name + " removed", Subject: b.Name}, nil
}
