package appraise

import (
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// rule asks one measured setting for its value.
type rule struct {
	policy  string
	setting evidence.SettingID
	good    func(v uint64) bool // each value that was measured must be good
	want    string
	absent  bool // not measured is good: firmware measures it only when it is unsafe
	kind    Kind
	what    string
	remedy  string
	// without, if not empty, is the kind for a host that does not measure the setting at all.
	without       Kind
	withoutRemedy string
}

func is(want uint64) func(uint64) bool { return func(v uint64) bool { return v == want } }

func nonzero(v uint64) bool { return v != 0 }

func never(uint64) bool { return false }

const (
	installVSM   = "install the HostGuardian feature, which turns on virtualization-based security (Install-WindowsFeature HostGuardian -Restart), and see that firmware has virtualization on"
	updateDumps  = "install the cumulative updates of Windows on this host before Hgs_DumpEncryption or Hgs_NoDumps are enabled for it"
	requireIOMMU = "switch the IOMMU on in firmware (VT-d, AMD-Vi) and require it: in the registry below HKLM\\SYSTEM\\CurrentControlSet\\Control\\DeviceGuard set RequirePlatformSecurityFeatures to 3, and restart"
	noDumps      = "switch dumps off: below HKLM\\SYSTEM\\CurrentControlSet\\Control\\CrashControl set CrashDumpEnabled to 0, and restart"
	cryptDumps   = "encrypt dumps: below HKLM\\SYSTEM\\CurrentControlSet\\Control\\CrashControl set DumpEncryptionEnabled to 1 and install the dump key, or switch dumps off; then restart"
)

// rules by policy, in the order of policy.Builtins.
var rules = []rule{
	{policy: policy.HgsSecureBootEnabled, setting: evidence.SecureBoot, good: is(1), want: "= 1", kind: SecureBootOff,
		what: "Secure Boot is off", remedy: "switch Secure Boot on in the firmware's setup, and restart"},
	{policy: policy.HgsUefiDebugDisabled, setting: evidence.UEFIDebug, good: never, want: "not measured", absent: true, kind: DebugOn,
		what: "the firmware's debugger is on", remedy: "switch it off in the firmware's setup, or install release firmware"},
	{policy: policy.HgsUefiDebugDisabled, setting: evidence.BootDebug, good: is(0), want: "= 0", kind: DebugOn,
		what: "the boot debugger is on", remedy: "bcdedit /bootdebug off, and the same with {bootmgr}; then restart"},
	{policy: policy.HgsUefiDebugDisabled, setting: evidence.KernelDebug, good: is(0), want: "= 0", kind: DebugOn,
		what: "the kernel debugger is on", remedy: "bcdedit /debug off, then restart"},
	{policy: policy.HgsUefiDebugDisabled, setting: evidence.HypervisorDebug, good: is(0), want: "= 0", kind: DebugOn,
		what: "the hypervisor's debugger is on", remedy: "bcdedit /set hypervisordebug off, then restart"},
	{policy: policy.HgsCiPolicy, setting: evidence.CodeIntegrity, good: is(1), want: "= 1", kind: CodeIntegrityOff,
		what: "code integrity is off", remedy: "bcdedit /deletevalue nointegritychecks, then restart"},
	{policy: policy.HgsCiPolicy, setting: evidence.TestSigning, good: is(0), want: "= 0", kind: TestSigningOn,
		what: "drivers with test signatures may run", remedy: "bcdedit /set testsigning off, then restart"},
	{policy: policy.HgsCiPolicy, setting: evidence.SafeMode, good: is(0), want: "= 0", absent: true, kind: NotNormalBoot,
		what: "Windows runs in safe mode", remedy: "restart it normally"},
	{policy: policy.HgsCiPolicy, setting: evidence.WinPE, good: is(0), want: "= 0", absent: true, kind: NotNormalBoot,
		what: "Windows PE runs, not the installed system", remedy: "restart it normally"},
	{policy: policy.HgsHypervisorEnforcedCiPolicy, setting: evidence.HVCI, good: nonzero, want: "not 0", kind: HVCIOff,
		what: "the hypervisor does not enforce code integrity", remedy: "turn on memory integrity (group policy: Turn On Virtualization Based Security, Enabled with UEFI lock), and restart"},
	{policy: policy.VsmRunning, setting: evidence.VSMLaunch, good: nonzero, want: "not 0", kind: VSMOff,
		what: "virtual secure mode does not run", remedy: installVSM},
	{policy: policy.HgsIommuEnabled, setting: evidence.VBSIOMMU, good: is(1), want: "= 1", kind: IOMMUNotRequired,
		what: "virtualization-based security starts without an IOMMU too", remedy: requireIOMMU},
	{policy: policy.HgsIommuEnabled, setting: evidence.HypervisorIOMMU, good: func(v uint64) bool { return v != 2 }, want: "= 0 or 1", absent: true, kind: IOMMUNotRequired,
		what: "the hypervisor was told not to use the IOMMU", remedy: "bcdedit /deletevalue hypervisoriommupolicy, then restart"},
	{policy: policy.HgsPageFileEncryptionEnabled, setting: evidence.PageFileEncryption, good: is(1), want: "= 1", kind: PageFilePlain,
		what: "the page file is not encrypted", remedy: "fsutil behavior set encryptpagingfile 1, then restart"},
	{policy: policy.HgsBitLockerEnabled, setting: evidence.BitLockerUnlock, good: nonzero, want: "not 0", kind: BitLockerOff,
		what: "the operating system's volume was not opened by BitLocker", remedy: "protect it: Enable-BitLocker on the system's volume, and restart"},
	{policy: policy.HgsNoHibernation, setting: evidence.HibernationDisabled, good: is(1), want: "= 1", kind: HibernationOn,
		what: "hibernation is possible", remedy: "powercfg /h off, then restart"},
	{policy: policy.HgsNoDumps, setting: evidence.DumpsDisabled, good: is(1), want: "= 1", kind: DumpsOn,
		what: "crash dumps are written", remedy: noDumps, without: DumpEventsMissing, withoutRemedy: updateDumps},
}

func (j *judge) policy(b *policy.Builtin) {
	for i := range rules {
		if rules[i].policy == b.Name {
			j.rule(b, &rules[i])
		}
	}
	switch b.Name {
	case policy.HgsSecureBootSettings:
		j.baselines(b)
	case policy.HgsCiPolicy:
		j.ciPolicies(b)
	case policy.HgsFullBoot:
		j.fullBoot(b)
	case policy.HgsVsmIdkPresent:
		j.identityKeys(b)
	case policy.HgsDumpEncryption:
		j.dumpEncryption(b)
	case policy.HgsDumpEncryptionKey:
		j.dumpKey(b)
	}
}

func (j *judge) rule(b *policy.Builtin, r *rule) {
	s := j.in.Facts.Settings.Get(r.setting)
	if !s.Measured() && r.setting == evidence.HypervisorDebug {
		if launch := j.in.Facts.Settings.Get(evidence.HypervisorLaunch); !launch.Measured() || launch.Only(0) {
			return // no hypervisor, no debugger of it
		}
	}
	if !s.Measured() && r.absent {
		return
	}
	if s.Measured() && !slices.ContainsFunc(s.Values(), func(v uint64) bool { return !r.good(v) }) {
		return
	}
	f := of(b, r.kind, r.what, r.remedy)
	f.Expected = []string{r.setting.String() + " " + r.want}
	j.setting(&f, r.setting)
	if !s.Measured() {
		f.Kind, f.What = SettingUnmeasured, "it was not measured, which counts as if "+quiet(r.what)
		if r.without != "" {
			f.Kind, f.What, f.Remedy = r.without, "this host does not measure how it writes dumps", r.withoutRemedy
		}
	} else if len(s.Values()) > 1 && slices.ContainsFunc(s.Values(), r.good) {
		f.Kind, f.What = SettingContradicts, "boot programs measured different values, one of which says that "+quiet(r.what)
	}
	f.Accept = j.disable(b)
	j.add(f)
}

// quiet is a sentence that goes on after another.
func quiet(s string) string {
	if strings.HasPrefix(s, "Windows") || strings.HasPrefix(s, "Secure") {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// setting says in a finding what was measured, where, and what the last good boot had.
func (j *judge) setting(f *Finding, id evidence.SettingID) {
	s := j.in.Facts.Settings.Get(id)
	f.Measured = id.String() + " not measured"
	if s.Measured() {
		f.PCR, f.Event, f.Measured = s.PCR, s.Event, id.String()+" = "+values(s)
		if id.SIPA() != 0 {
			f.Measured += fmt.Sprintf(" (event 0x%08x)", id.SIPA())
		}
	}
	if j.in.LastGood == nil {
		return
	}
	switch was := j.in.LastGood.Settings.Get(id); {
	case values(was) == values(s):
		f.Changed = "nothing: the last boot that passed had the same"
	case !was.Measured():
		f.Changed = "not measured in the last boot that passed"
	default:
		f.Changed = "was " + values(was) + " in the last boot that passed"
	}
}

func values(s *evidence.Setting) string {
	text := make([]string, 0, 2)
	for _, v := range s.Values() {
		text = append(text, fmt.Sprint(v))
	}
	return strings.Join(text, ", ")
}

// disable is the verb that would switch a policy off for the hosts of this class, empty for a locked one.
func (j *judge) disable(b *policy.Builtin) string {
	if b.Locked {
		return ""
	}
	return "policy disable " + b.Name + " --class " + j.in.Host.Class
}

func (j *judge) fullBoot(b *policy.Builtin) {
	full, known := j.in.Facts.FullBoot()
	if full && known {
		return
	}
	f := of(b, NotFullBoot, "the host resumed from hibernation or restarted softly, so its measurements are older than what runs", "restart it fully: shutdown /r /t 0")
	if !known {
		f.Kind, f.What = SettingUnmeasured, "the log does not say whether this was a full boot"
	}
	id := evidence.TransferControl
	if soft := j.in.Facts.Settings.Get(evidence.KernelSoftReboot); soft.Measured() {
		id = evidence.KernelSoftReboot
	}
	j.setting(&f, id)
	f.Expected = []string{"transferControl = 1 or 5, and no kernelSoftReboot"}
	j.add(f)
}

func (j *judge) identityKeys(b *policy.Builtin) {
	missing := ""
	switch v2 := j.v.Version == policy.Version2; {
	case len(j.in.Facts.IDK) == 0 && len(j.in.Facts.IDKS) == 0:
		missing = "neither identity key of virtual secure mode was measured"
	case len(j.in.Facts.IDK) == 0:
		missing = "the identity key of virtual secure mode for encryption was not measured"
	case len(j.in.Facts.IDKS) == 0 && v2:
		missing = "the identity key of virtual secure mode for signing was not measured"
	default:
		return
	}
	f := of(b, NoIdentityKey, missing, installVSM)
	f.Expected = []string{"events 0x00050020 and 0x00050023 with RSA keys of 2048 bits or more"}
	f.Measured = fmt.Sprintf("%d bytes of the key for encryption, %d of the one for signing", len(j.in.Facts.IDK), len(j.in.Facts.IDKS))
	if l := j.in.LastGood; l != nil {
		f.Changed = fmt.Sprintf("the last boot that passed had measured %d and %d bytes", len(l.IDK), len(l.IDKS))
	}
	j.add(f)
}
