package hgsa

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is 16 bytes in the order of the dashed notation (first group first). The
// binary forms on the wire keep the first three groups little-endian, as .NET
// does; the codec converts.
type GUID [16]byte

// String writes the dashed lower-case form, the one this package sends.
func (g GUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], g[0:4])
	hex.Encode(b[9:13], g[4:6])
	hex.Encode(b[14:18], g[6:8])
	hex.Encode(b[19:23], g[8:10])
	hex.Encode(b[24:36], g[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// ParseGUID reads the dashed form in any case, with or without braces.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	t := s
	if len(t) == 38 && t[0] == '{' && t[37] == '}' {
		t = t[1:37]
	}
	if len(t) != 36 || t[8] != '-' || t[13] != '-' || t[18] != '-' || t[23] != '-' {
		return g, fmt.Errorf("%w: not a dashed GUID", ErrPayload)
	}
	plain := strings.ReplaceAll(t, "-", "")
	if len(plain) != 32 {
		return g, fmt.Errorf("%w: not a dashed GUID", ErrPayload)
	}
	if _, err := hex.Decode(g[:], []byte(plain)); err != nil {
		return GUID{}, fmt.Errorf("%w: a GUID holds a character that is not hexadecimal", ErrPayload)
	}
	return g, nil
}

// guidFromNet converts the 16 bytes of .NET's Guid.ToByteArray.
func guidFromNet(b []byte) (GUID, error) {
	var g GUID
	if len(b) != len(g) {
		return g, fmt.Errorf("%w: a binary GUID has %d bytes, want 16", ErrPayload, len(b))
	}
	copy(g[:], b)
	return g.swap(), nil
}

// swap reverses the first three groups: dashed order to .NET order and back.
func (g GUID) swap() GUID {
	g[0], g[1], g[2], g[3] = g[3], g[2], g[1], g[0]
	g[4], g[5] = g[5], g[4]
	g[6], g[7] = g[7], g[6]
	return g
}

// mustGUID is for the table below only: its input is a constant.
func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic("hgsa: policy table: " + s)
	}
	return g
}

// PolicyID pairs an identifier of EvaluationLog.Reason with its name in the
// specification (2.2.2.13).
type PolicyID struct {
	ID   GUID
	Name string
	Asks string // what the policy asks of a host
}

// PolicyIDs lists the policy identifiers of 4.6 in the specification's order.
// Readers must not change it.
var PolicyIDs = []PolicyID{
	{mustGUID("6a460ee1-62ea-416f-ae6c-04e29634506d"), "SecureBootEnabledGuid", "Secure Boot is on"},
	{mustGUID("756dc455-9528-479a-a86a-c646417316c9"), "SecureBootSettingsGuid", "the expected Secure Boot measurements (TPM baseline)"},
	{mustGUID("20188fda-d40b-460d-b078-2e7898a42ae9"), "DebugModeUefiGuid", "UEFI debug mode is off"},
	{mustGUID("81f110ba-53c5-4064-9d64-51029fa24f49"), "SystemIntegrityCiKnownGoodGuid", "an expected code integrity policy"},
	{mustGUID("75ad09c9-7254-4d00-96f3-3b09d0aaac54"), "FullBootGuid", "a full boot, not a resume"},
	{mustGUID("75d595de-12f5-41e9-a61e-469d3205ecca"), "VsmIdkPresent", "a VSM identity key in the boot log"},
	{mustGUID("6c0a6d29-5bcb-4f28-bafb-f71eb60fdae0"), "VsmRunning", "VSM is running"},
	{mustGUID("da0776e5-6570-44b3-9a17-7e95b4fc7779"), "IommuEnabled", "an IOMMU is required to launch VSM"},
	{mustGUID("347da547-d266-4939-bf3d-9ec73a90bdbc"), "BitLockerEnabled", "BitLocker"},
	{mustGUID("12df0ee9-b38e-4086-90f8-703d9e7cb878"), "PagefileEncryptionEnabled", "page file encryption"},
	{mustGUID("5408bd30-3250-4ac1-a150-c410af756699"), "HypervisorEnforcedCiPolicy", "code integrity enforced by the hypervisor"},
	{mustGUID("a32022c6-dccd-4bf5-be76-3b5ca1542559"), "NoHibernation", "hibernation is disabled"},
	{mustGUID("2a796e36-e918-454f-b610-60f086e8d334"), "NoDumps", "crash dumps are disabled"},
	{mustGUID("6f390a71-753c-43aa-a326-74e30aedcd9d"), "DumpEncryption", "crash dumps, if enabled, are encrypted"},
	{mustGUID("85dac0a4-8ba9-4a7f-a342-211862ce0be8"), "DumpEncryptionKey", "the dump encryption key, if enabled, is an expected one"},
}
