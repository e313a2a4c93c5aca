package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// clientStatus is AttestationStatus as a Windows host shows it (hgs-features.md F01).
type clientStatus int

const (
	notConfigured    clientStatus = 0
	statusUnknown    clientStatus = 1
	passed           clientStatus = 100
	expired          clientStatus = 200
	transientError   clientStatus = 300
	unauthorizedHost clientStatus = 301
	tpmError         clientStatus = 302
	insecureHost     clientStatus = 303
)

// noInformation is the sub-status of every status that has none.
const noInformation = "NoInformation"

// advice is what a status or sub-status means on the host, and what to do there.
type advice struct{ name, means, remedy string }

// statuses are all values of AttestationStatus. README's table is made of it.
var statuses = []struct {
	code clientStatus
	advice
}{
	{notConfigured, advice{"NotConfigured", "the host has no address of a service", "`Set-HgsClientConfiguration -AttestationServerUrl URL -KeyProtectionServerUrl URL`"}},
	{statusUnknown, advice{"Unknown", "the host has not tried yet, or has nothing to attest with", "`Get-HgsClientConfiguration` makes it try; it needs the mode's registration: " +
		"a host key (`Set-HgsClientHostKey`) or a TPM 2.0, and the feature: `Install-WindowsFeature HostGuardian -Restart`"}},
	{passed, advice{"Passed", "it has a health certificate", "nothing"}},
	{expired, advice{"Expired", "the certificate that it got is over by the host's clock", "compare the clocks of host and service (`w32tm /query /status`; on the node `time status`), then `Get-HgsClientConfiguration`"}},
	{transientError, advice{"TransientError", "the service was not reached, or can't serve just now", "see that name, route and port lead there (`Test-NetConnection NAME -Port 80`); on the node `status`. " +
		"A host that offers TLS 1.0 only: `reg add HKLM\\SOFTWARE\\Microsoft\\.NETFramework\\v4.0.30319 /v SystemDefaultTlsVersions /t REG_DWORD /d 1 /f /reg:64`, the same with `/reg:32`; restart"}},
	{unauthorizedHost, advice{"UnauthorizedHost", "the service does not know the host, or has revoked it", "on the node `host pending`, then `host add` or `host add-tpm`; if it is there, `host list` says whether it is revoked or its TPM's vendor is not trusted"}},
	{tpmError, advice{"TpmError", "the TPM did not answer as it must", "`Get-Tpm`; restart the host; after a change of the mainboard register the host anew"}},
	{insecureHost, advice{"InsecureHostConfiguration", "the host does not meet the policies", "see its sub-status; on the node `host findings HOST`"}},
}

// subStatuses are all values of AttestationSubStatus but NoInformation.
var subStatuses = []advice{
	{"SecureBoot", "Secure Boot is off", "switch Secure Boot on in the firmware's setup, with Microsoft's template; restart"},
	{"SecureBootSettings", "Secure Boot's keys or launch authorities are those of no baseline", "undo the change, or look at it and accept it: `baseline add NAME --host HOST`"},
	{"DebugMode", "a debugger is on", "`bcdedit /debug off`, `bcdedit /bootdebug off`, `bcdedit /set hypervisordebug off`; restart"},
	{"CodeIntegrityPolicy", "no registered code integrity policy is in use", "install a registered policy and restart, or accept this one: `ci-policy add NAME --host HOST`; no test signing: `bcdedit /set testsigning off`"},
	{"HypervisorEnforcedCodeIntegrityPolicy", "the hypervisor does not enforce code integrity", "switch memory integrity on by group policy (Turn On Virtualization Based Security); restart"},
	{"FullBoot", "the host was resumed from sleep or hibernation", "`shutdown /r /t 0`, and no resume any more: `powercfg /h off`"},
	{"VirtualSecureMode", "virtualization-based security does not run or has no identity key", "`Install-WindowsFeature HostGuardian -Restart`; virtualization on in firmware"},
	{"Iommu", "no IOMMU is required", "switch VT-d or AMD-Vi on in firmware; `RequirePlatformSecurityFeatures` = 3 below `HKLM\\SYSTEM\\CurrentControlSet\\Control\\DeviceGuard`; restart"},
	{"PagefileEncryption", "the page file is not encrypted", "`fsutil behavior set encryptpagingfile 1`; restart"},
	{"BitLocker", "the system's volume is not protected", "`Enable-BitLocker` on the system's volume; restart"},
	{"HibernationEnabled", "hibernation is possible", "`powercfg /h off`; restart"},
	{"DumpsEnabled", "crash dumps are written", "`CrashDumpEnabled` = 0 below `HKLM\\SYSTEM\\CurrentControlSet\\Control\\CrashControl`; restart. On a host without current updates: update it"},
	{"DumpEncryption", "crash dumps are not encrypted", "`DumpEncryptionEnabled` = 1 below `HKLM\\SYSTEM\\CurrentControlSet\\Control\\CrashControl` and a dump key, or no dumps; restart. On a host without current updates: update it first"},
	{"DumpEncryptionKey", "dumps are encrypted to an unknown key", "use a registered key, or register this one: `dump-key add NAME --host HOST`"},
	{"TcgLogVerification", "the boot log does not fit the TPM", "restart; a host that boots over the network needs a current PXE boot program; update the firmware; if it stays, treat the host as suspect"},
}

func (s clientStatus) advice() advice {
	for _, a := range statuses {
		if a.code == s {
			return a.advice
		}
	}
	return advice{name: fmt.Sprint(int(s))}
}

func (s clientStatus) String() string { return s.advice().name }

// errTPM is a TPM that can't be asked.
var errTPM = errors.New("the host's TPM")

// errExpired is a certificate that is over when it arrives.
var errExpired = errors.New("the health certificate has expired")

// untrusted is why an answer is not taken.
func untrusted(err error, der []byte, now time.Time) error {
	if c, parseErr := x509.ParseCertificate(der); parseErr == nil && now.After(c.NotAfter) {
		err = fmt.Errorf("%w: %w", errExpired, err)
	}
	return fmt.Errorf("the service's answer is not to be trusted: %w", err)
}

// attestationStatus maps an outcome to what a Windows host shows (hgsa.md 7.4).
func attestationStatus(err error) clientStatus {
	if err == nil {
		return passed
	}
	var (
		unauthorized *hgsa.UnauthorizedErrorReply
		policy       *hgsa.PolicyEvaluationErrorReply
		rtpm         *hgsa.RtpmErrorReply
		tcg          *hgsa.TcgLogValidationErrorReply
		vsm          *hgsa.VirtualSecureModeErrorReply
	)
	switch {
	case errors.As(err, &unauthorized):
		return unauthorizedHost
	case errors.As(err, &rtpm), errors.Is(err, errTPM):
		return tpmError
	case errors.As(err, &policy), errors.As(err, &tcg), errors.As(err, &vsm):
		return insecureHost
	case errors.Is(err, errExpired):
		return expired
	}
	return transientError
}

// subStatus names what the failure is about, in the words of a Windows host (hgs-features.md F02).
func subStatus(err error) string {
	var (
		policies *hgsa.PolicyEvaluationErrorReply
		tcg      *hgsa.TcgLogValidationErrorReply
		vsm      *hgsa.VirtualSecureModeErrorReply
		names    []string
	)
	switch {
	case errors.As(err, &policies):
		for _, r := range policies.Reasons {
			if b, ok := policy.BuiltinByName(r.Reason.String()); ok && !slices.Contains(names, b.SubStatus) {
				names = append(names, b.SubStatus)
			}
		}
	case errors.As(err, &tcg):
		return "TcgLogVerification"
	case errors.As(err, &vsm):
		return "VirtualSecureMode"
	}
	if len(names) == 0 {
		return noInformation
	}
	return strings.Join(names, ", ")
}

// remedies are what to do about a status: those of its sub-statuses where it has any.
func remedies(st clientStatus, sub string) []string {
	if sub == noInformation || st == passed {
		return []string{st.advice().remedy}
	}
	var all []string
	for name := range strings.SplitSeq(sub, ", ") {
		for _, a := range subStatuses {
			if a.name == name {
				all = append(all, a.name+": "+a.remedy)
			}
		}
	}
	return all
}

// recorded is the outcome of the last attestation, as its files tell.
func (o *options) recorded() (st clientStatus, sub string) {
	st, sub = statusUnknown, noInformation
	if cert, err := o.readCertificate(fileHealth); err == nil {
		if st = passed; time.Now().After(cert.NotAfter) {
			st = expired
		}
	}
	b, err := os.ReadFile(o.path(fileLastFail))
	if err != nil {
		return st, sub
	}
	name, rest, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	for _, s := range statuses {
		if name == s.name {
			st = s.code
		}
	}
	if rest != "" {
		sub = rest
	}
	return st, sub
}

// tryNow attests in the service's mode, if the host has what that takes. Its outcome is recorded like that of the verbs of their own.
func (o *options) tryNow(mode hgsa.AttestationOperationMode) (tried bool, err error) {
	has := func(name string) bool { _, err := os.Stat(o.path(name)); return err == nil }
	quiet := *o
	quiet.json, quiet.facts = true, map[string]any{}
	switch {
	case mode == hgsa.ModeHostKey && has(fileHostKey):
		return true, hostKeyAttest(&quiet)
	case mode == hgsa.ModeTPM && has(fileEK) && o.tpm != "":
		if quiet.log == "" && quiet.misbehave == "" && has(fileLog) {
			quiet.log = o.path(fileLog) // as it was started last
		}
		return true, tpmAttest(&quiet)
	}
	return false, nil
}

// status attests and prints Get-HgsClientConfiguration's fields in its words and order, and what to do.
func status(o *options) error {
	st, sub, mode, op := notConfigured, noInformation, "Local", "None"
	var why error
	if o.url != "" {
		mode = "HostGuardianService"
		c, err := o.httpClient()
		if err != nil {
			return err
		}
		info, err := o.getInfo(context.Background(), c)
		st, sub = o.recorded()
		tried := false
		if err == nil {
			op = info.OperationMode.String()
			if !o.stored {
				tried, why = o.tryNow(info.OperationMode)
			}
		} else if !o.stored {
			tried, why = true, err
		}
		if errors.Is(why, errUsage) {
			return why
		}
		if tried {
			st, sub = attestationStatus(why), subStatus(why)
		}
	}
	o.say("IsHostGuarded", st == passed, "IsHostGuarded            : %t", st == passed)
	o.say("Mode", mode, "Mode                     : %s", mode)
	o.say("KeyProtectionServerUrl", o.kps, "KeyProtectionServerUrl   : %s", o.kps)
	o.say("AttestationServerUrl", o.url, "AttestationServerUrl     : %s", o.url)
	o.say("AttestationOperationMode", op, "AttestationOperationMode : %s", op)
	o.say("AttestationStatus", st.String(), "AttestationStatus        : %s", st)
	o.say("AttestationSubstatus", sub, "AttestationSubstatus     : %s", sub)
	if why != nil {
		o.say("Error", why.Error(), "Error                    : %s", why)
	}
	todo := remedies(st, sub)
	o.facts["Remedies"] = todo
	if !o.json && st != passed {
		for _, r := range todo {
			fmt.Println("  ->", r)
		}
	}
	return nil
}
