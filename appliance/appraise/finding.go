package appraise

import (
	"errors"
	"fmt"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// Kind says what is wrong. The strings are stable: they are stored, compared and written to the audit.
type Kind string

// The kinds of findings.
const (
	UnknownHost        Kind = "host-unknown"
	WrongEK            Kind = "ek-other"
	Revoked            Kind = "host-revoked"
	UntrustedEK        Kind = "ek-untrusted"
	BadLog             Kind = "log-refused"
	SecureBootOff      Kind = "secure-boot-off"
	NoBaseline         Kind = "baseline-none"       // none of the host's version is registered
	BaselineOther      Kind = "baseline-mismatch"   //
	ForeignLoader      Kind = "boot-loader-foreign" // another boot loader than Windows' measured something
	DebugOn            Kind = "debug-on"
	NoCIPolicy         Kind = "ci-policy-none"     // none of the host's version is registered
	CIPolicyOther      Kind = "ci-policy-mismatch" //
	CodeIntegrityOff   Kind = "code-integrity-off"
	TestSigningOn      Kind = "test-signing-on"
	NotNormalBoot      Kind = "boot-not-normal" // safe mode or Windows PE
	HVCIOff            Kind = "hvci-off"
	NotFullBoot        Kind = "boot-not-full"
	NoIdentityKey      Kind = "vsm-key-missing"
	VSMOff             Kind = "vsm-off"
	IOMMUNotRequired   Kind = "iommu-not-required"
	PageFilePlain      Kind = "page-file-plain"
	BitLockerOff       Kind = "bitlocker-off"
	HibernationOn      Kind = "hibernation-on"
	DumpsOn            Kind = "dumps-on"
	DumpsPlain         Kind = "dumps-plain"
	NoDumpKey          Kind = "dump-key-none"  // none is registered
	DumpKeyOther       Kind = "dump-key-other" //
	DumpEventsMissing  Kind = "dump-events-missing"
	SettingUnmeasured  Kind = "setting-unmeasured"
	VersionsMixed      Kind = "versions-mixed" // a match exists, but of the other policy version
	SettingContradicts Kind = "setting-contradicts"
	OldTLS             Kind = "tls-old" // no verdict's: the host's connection was refused, not its evidence
)

// Finding is one reason why a host does not pass. It is for audit and console; hosts get only the GUID.
type Finding struct {
	Kind      Kind     `json:"kind"`
	Policy    string   `json:"policy,omitempty"` // empty where the host itself or its log is refused
	GUID      string   `json:"guid,omitempty"`
	SubStatus string   `json:"subStatus,omitempty"` // what the host shows as AttestationSubStatus
	EventID   int      `json:"eventId,omitempty"`   // of Microsoft's event log
	PCR       int      `json:"pcr"`                 // -1 where none is to blame
	Event     int      `json:"event"`               // in the log, from 0; -1 where none is to blame
	Measured  string   `json:"measured,omitempty"`  // the event, decoded
	Expected  []string `json:"expected,omitempty"`  // what would pass
	Changed   string   `json:"changed,omitempty"`   // against the last boot that passed; empty if none is known
	What      string   `json:"what"`
	Remedy    string   `json:"remedy"`
	Accept    string   `json:"accept,omitempty"` // the verb that would make the host pass as it is; empty where nothing may
}

// about is a finding on the host itself.
func about(kind Kind, what, remedy, accept string) Finding {
	event := 0
	if kind == UnknownHost || kind == WrongEK || kind == Revoked || kind == UntrustedEK {
		event = 1500
	}
	return Finding{Kind: kind, EventID: event, PCR: -1, Event: -1, What: what, Remedy: remedy, Accept: accept}
}

// of is a finding on a policy.
func of(b *policy.Builtin, kind Kind, what, remedy string) Finding {
	f := Finding{Kind: kind, Policy: b.Name, GUID: b.GUID, SubStatus: b.SubStatus, PCR: -1, Event: -1, What: what, Remedy: remedy}
	if len(b.Events) > 0 {
		f.EventID = b.Events[0]
	}
	return f
}

// TLSRemedy is for a host whose .NET offers TLS 1.0 only, as Windows Server 2016 does until it is told to use what the system has.
const TLSRemedy = `on the host: reg add HKLM\SOFTWARE\Microsoft\.NETFramework\v4.0.30319 /v SystemDefaultTlsVersions /t REG_DWORD /d 1 /f /reg:64, ` +
	"the same with /reg:32, then restart it"

// TLSFinding is on a host from whose address a connection offered no TLS 1.2. Nothing proves that it was the host's own.
func TLSFinding(address, offered string) Finding {
	f := about(OldTLS, fmt.Sprintf("from its address %s somebody asked for HTTPS with %s at best, which is refused", address, offered), TLSRemedy, "")
	f.Measured, f.Expected = offered, []string{"TLS 1.2 or newer"}
	return f
}

func untrustedFinding(err error) Finding {
	f := about(UntrustedEK, "the endorsement key's certificate is not trusted: "+err.Error(), "import the certificate that is named, if you trust the TPM's vendor", "tpm-trust import VENDOR < FILE")
	var missing *evidence.MissingIssuer
	if errors.As(err, &missing) && len(missing.URLs) > 0 {
		f.Remedy = "download " + strings.Join(missing.URLs, " or ") + " on your workstation and import it, if you trust the TPM's vendor"
	}
	if errors.Is(err, errNoCertificate) || errors.Is(err, errOtherKey) {
		f.Remedy, f.Accept = "register the host again with the platform identifier that Get-PlatformIdentifier writes in an elevated prompt", ""
	}
	return f
}

// logRemedies say what is usually behind a refused log.
var logRemedies = map[evidence.Kind]string{
	evidence.KindLog:       "restart the host; if it stays, its firmware writes logs that do not follow the standard: update the firmware",
	evidence.KindBank:      "the firmware measures or logs SHA-1 only: update it, switch the SHA-256 bank on in its setup, and restart the host",
	evidence.KindPCR:       "restart the host; if it boots over the network, update its PXE boot program; else somebody changed the log or measured past it",
	evidence.KindUnlogged:  "restart the host; if it stays, find out which software extends PCRs without logging it",
	evidence.KindDigest:    "the log was changed after the boot: treat the host as suspect, restart it and look again",
	evidence.KindType:      "the log was changed after the boot, or the firmware breaks the standard: restart the host, update the firmware",
	evidence.KindContent:   "the log was changed after the boot, or the firmware breaks the standard: restart the host, update the firmware",
	evidence.KindConflict:  "treat the host as suspect: restart it and look again",
	evidence.KindAfterCap:  "treat the host as suspect: something measured after the boot loader was done",
	evidence.KindUncapped:  "restart the host fully; if it boots over the network, update its PXE boot program",
	evidence.KindFirmware:  "the firmware could not measure: update it, and see its own event log",
	evidence.KindVariables: "switch Secure Boot and the TPM on in the firmware's setup; if it boots over the network, update its PXE boot program",
}

func logFinding(failure *evidence.Failure) Finding {
	f := about(BadLog, "the boot log was not received", "restart the host", "")
	f.SubStatus = "TcgLogVerification"
	if failure != nil {
		f.PCR, f.Event, f.Measured, f.What = failure.PCR, failure.Event, string(failure.Kind)+": "+failure.Detail, "the boot log proves nothing"
		if f.Remedy = logRemedies[failure.Kind]; f.Remedy == "" {
			f.Remedy = "restart the host; if it stays, update its firmware"
		}
	}
	return f
}

// String is the finding in a few lines, for people.
func (f *Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", f.Kind, f.What)
	field := func(label, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", label, value)
		}
	}
	if f.Policy != "" {
		field("policy", f.Policy+" "+f.GUID)
	}
	field("shown as", f.SubStatus)
	if f.PCR >= 0 {
		where := fmt.Sprintf("PCR %d", f.PCR)
		if f.Event >= 0 {
			where += fmt.Sprintf(", event %d", f.Event)
		}
		field("where", where)
	}
	field("measured", f.Measured)
	for _, e := range f.Expected {
		field("expected", e)
	}
	field("changed", f.Changed)
	field("remedy", f.Remedy)
	field("accept", f.Accept)
	return b.String()
}
