package evidence

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// Facts are what one boot log proves. They are small (below 4 KB as JSON), independent of the log's memory, and comparable by their JSON.
type Facts struct {
	Bank        Bank        `json:"bank"`
	Events      int         `json:"events"` // in the log
	Quirks      []Quirk     `json:"quirks,omitempty"`
	Variables   []Variable  `json:"variables"`   // Secure Boot configuration, as measured before the separator of PCR 7
	Authorities []Authority `json:"authorities"` // what allowed the boot images, in the order of first use
	Settings    Settings    `json:"settings"`
	IDK         []byte      `json:"idk,omitempty"`  // VSM identity key for encryption: payload of hgsa.md 9.3, checked
	IDKS        []byte      `json:"idks,omitempty"` // the same for signing
	Policies    []SIPolicy  `json:"policies,omitempty"`
	DumpKey     Hex         `json:"dumpKey,omitempty"` // SHA-256 of the key that crash dumps are encrypted to
	// Foreign lists the PCRs of 8 to 10 and 15 with events: another boot loader than Windows' ran. Such a one can measure whatever it
	// likes into PCR 11 to 14 before Windows does, so the other facts are worth as much as the authorities that let it run.
	Foreign []int `json:"foreign,omitempty"`
}

// Hex is a byte string that is hexadecimal in JSON, for people to compare.
type Hex []byte

// MarshalText writes lower-case hexadecimal.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText reads hexadecimal.
func (h *Hex) UnmarshalText(b []byte) error {
	d, err := hex.AppendDecode(nil, b)
	if err != nil {
		return fmt.Errorf("hexadecimal: %w", err)
	}
	*h = d
	return nil
}

// Variable is a UEFI variable measured into PCR 7.
type Variable struct {
	Name   string `json:"name"`
	GUID   string `json:"guid"`
	Size   int    `json:"size"`
	SHA256 Hex    `json:"sha256"` // of its contents, whatever the bank
	Event  int    `json:"event"`
}

// Authority is the entry of a signature database (or, from a shim, a variable) by which an image was allowed to run. Whoever has the
// running system can add authorities to the end of the list, never remove one: compare the whole list.
type Authority struct {
	Variable string `json:"variable"` // db, MokList, Shim, ...
	GUID     string `json:"guid"`
	SHA256   Hex    `json:"sha256"` // of the measured entry: owner and certificate; compare this
	Event    int    `json:"event"`
}

// SIPolicy is a code integrity policy that the boot loader measured (wbcl.h, SIPAEVENT_SI_POLICY).
type SIPolicy struct {
	Name    string `json:"name"`
	Version string `json:"version"` // a.b.c.d
	Hash    Bank   `json:"hash"`
	Digest  Hex    `json:"digest"` // of the policy without its signature
	PCR     int    `json:"pcr"`
	Event   int    `json:"event"`
}

// SettingID names one measured setting.
type SettingID uint8

// The settings. Unless said otherwise they are booleans measured as 0 or 1 by the Windows boot loader.
const (
	SecureBoot          SettingID = iota // UEFI variable SecureBoot
	UEFIDebug                            // firmware debugger; measured only when on
	DMAProtectionOff                     // firmware started without DMA protection; measured only when so
	AccessControl                        // PCR 11: the values that open and close access to disk keys, in order
	BootCounter                          // of the TPM at this boot
	EventCounter                         //
	CounterID                            //
	TransferControl                      // where the boot manager went: 1 operating system loader, 5 hypervisor loader, others resume
	BitLockerUnlock                      // flags: 1 cached, 2 media, 4 TPM, 0x10 PIN, 0x20 external, 0x40 recovery; 0 not unlocked
	BootDebug                            // boot debugger
	KernelDebug                          //
	HypervisorDebug                      //
	CodeIntegrity                        //
	TestSigning                          //
	FlightSigning                        //
	SafeMode                             //
	WinPE                                //
	DataExecution                        // data execution prevention policy
	DriverLoadPolicy                     //
	HypervisorLaunch                     // launch type, 1 auto
	HypervisorIOMMU                      // policy: 0 default, 1 enable, 2 disable
	HypervisorMMIONX                     //
	HypervisorMSRFilter                  //
	BootDMAProtection                    //
	VSMLaunch                            // launch type: 0 off, 1 auto
	LSAIsolation                         //
	SMT                                  // 0 off, 1 on, 2 on in firmware and off in software
	PageFileEncryption                   //
	HibernationDisabled                  //
	DumpsDisabled                        //
	DumpEncryption                       //
	VBSRequired                          //
	VBSSecureBoot                        // required
	VBSIOMMU                             // required
	VBSMMIONX                            // required
	VBSMSRFilter                         // required
	VBSMandatory                         //
	HVCI                                 // hypervisor-enforced code integrity policy
	VBSMicrosoftBoot                     // Microsoft boot chain required
	VBSDumpAMERoot                       //
	VBSNoSecrets                         //
	KernelSoftReboot                     // a soft reboot was measured; the value counts its containers
	settingCount
)

// settings gives each setting its stored name and its SIPA event (0: not from one).
var settings = [settingCount]struct {
	name string
	sipa uint32
}{
	SecureBoot: {"secureBoot", 0}, UEFIDebug: {"uefiDebug", 0}, DMAProtectionOff: {"dmaProtectionOff", 0}, AccessControl: {"accessControl", 0},
	BootCounter: {"bootCounter", 0x00020002}, TransferControl: {"transferControl", 0x00020003}, BitLockerUnlock: {"bitLockerUnlock", 0x00020005},
	EventCounter: {"eventCounter", 0x00020006}, CounterID: {"counterId", 0x00020007}, BootDebug: {"bootDebug", 0x00040001},
	KernelDebug: {"kernelDebug", 0x00050001}, CodeIntegrity: {"codeIntegrity", 0x00050002}, TestSigning: {"testSigning", 0x00050003},
	DataExecution: {"dataExecution", 0x00050004}, SafeMode: {"safeMode", 0x00050005}, WinPE: {"winPE", 0x00050006},
	HypervisorLaunch: {"hypervisorLaunch", 0x0005000a}, HypervisorIOMMU: {"hypervisorIommu", 0x0005000c},
	HypervisorDebug: {"hypervisorDebug", 0x0005000d}, DriverLoadPolicy: {"driverLoadPolicy", 0x0005000e},
	HypervisorMMIONX: {"hypervisorMmioNx", 0x00050010}, HypervisorMSRFilter: {"hypervisorMsrFilter", 0x00050011},
	VSMLaunch: {"vsmLaunch", 0x00050012}, SMT: {"smt", 0x00050014}, FlightSigning: {"flightSigning", 0x00050021},
	PageFileEncryption: {"pageFileEncryption", 0x00050022}, HibernationDisabled: {"hibernationDisabled", 0x00050024},
	DumpsDisabled: {"dumpsDisabled", 0x00050025}, DumpEncryption: {"dumpEncryption", 0x00050026}, LSAIsolation: {"lsaIsolation", 0x00050028},
	BootDMAProtection: {"bootDmaProtection", 0x00050030}, VBSRequired: {"vbsRequired", 0x000a0001}, VBSSecureBoot: {"vbsSecureBoot", 0x000a0002},
	VBSIOMMU: {"vbsIommu", 0x000a0003}, VBSMMIONX: {"vbsMmioNx", 0x000a0004}, VBSMSRFilter: {"vbsMsrFilter", 0x000a0005},
	VBSMandatory: {"vbsMandatory", 0x000a0006}, HVCI: {"hvci", 0x000a0007}, VBSMicrosoftBoot: {"vbsMicrosoftBoot", 0x000a0008},
	VBSDumpAMERoot: {"vbsDumpAmeRoot", 0x000a0009}, VBSNoSecrets: {"vbsNoSecrets", 0x000a000a}, KernelSoftReboot: {"kernelSoftReboot", 0},
}

// String is the stored name of a setting, like "vsmLaunch".
func (id SettingID) String() string {
	if id >= settingCount {
		return fmt.Sprintf("setting %d", uint8(id))
	}
	return settings[id].name
}

// SIPA is the Windows event (wbcl.h) that carries the setting, 0 if none does.
func (id SettingID) SIPA() uint32 {
	if id >= settingCount {
		return 0
	}
	return settings[id].sipa
}

const maxValues = 6

// Setting is one measured setting: every different value that was measured for it, in order. The boot loader measures most settings
// several times (in PCR 12 and 13, and by each loader); where all agree there is one value.
type Setting struct {
	values [maxValues]uint64
	n      uint8
	PCR    int // of the first measurement
	Event  int
}

// Measured says whether anything was measured.
func (s *Setting) Measured() bool { return s.n > 0 }

// Values are the different values in the order of their first measurement; empty if never measured. It aliases s.
func (s *Setting) Values() []uint64 { return s.values[:s.n] }

// Only says whether the setting was measured, always with this value.
func (s *Setting) Only(v uint64) bool { return s.n == 1 && s.values[0] == v }

// add remembers a value, false if there are too many different ones.
func (s *Setting) add(v uint64, pcr, event int) bool {
	if s.n == 0 {
		s.PCR, s.Event = pcr, event
	}
	if slices.Contains(s.Values(), v) {
		return true
	}
	if s.n == maxValues {
		return false
	}
	s.values[s.n] = v
	s.n++
	return true
}

// Settings holds every setting; index it with a SettingID. Its JSON is an object of the measured ones by name.
type Settings [settingCount]Setting

// Get is the setting itself, nil for an id that does not exist.
func (s *Settings) Get(id SettingID) *Setting {
	if id >= settingCount {
		return nil
	}
	return &s[id]
}

// SettingIDs lists every setting.
func SettingIDs() []SettingID {
	ids := make([]SettingID, settingCount)
	for i := range ids {
		ids[i] = SettingID(i)
	}
	return ids
}

type settingJSON struct {
	Values []uint64 `json:"v"`
	PCR    int      `json:"pcr"`
	Event  int      `json:"event"`
}

// MarshalJSON writes the measured settings by name.
func (s Settings) MarshalJSON() ([]byte, error) {
	m := make(map[string]settingJSON)
	for i := range s {
		if v := &s[i]; v.Measured() {
			m[SettingID(i).String()] = settingJSON{v.Values(), v.PCR, v.Event}
		}
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads what MarshalJSON wrote; names it does not know are an error, so that a stored fact never silently vanishes.
func (s *Settings) UnmarshalJSON(b []byte) error {
	var m map[string]settingJSON
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	*s = Settings{}
	for i := range s {
		j, ok := m[SettingID(i).String()]
		if !ok {
			continue
		}
		delete(m, SettingID(i).String())
		if len(j.Values) == 0 || len(j.Values) > maxValues {
			return fmt.Errorf("setting %s has %d values", SettingID(i), len(j.Values))
		}
		s[i] = Setting{n: uint8(copy(s[i].values[:], j.Values)), PCR: j.PCR, Event: j.Event}
		copy(s[i].values[:], j.Values)
	}
	for name := range m {
		return fmt.Errorf("there is no setting %q", name)
	}
	return nil
}

// FullBoot says whether the log is that of a full boot: control went to a loader of an operating system or hypervisor and nowhere else (a
// resume from hibernation takes another value), and no kernel soft reboot was measured. known is false if the log does not say.
func (f *Facts) FullBoot() (full, known bool) {
	t := &f.Settings[TransferControl]
	if !t.Measured() {
		return false, false
	}
	for _, v := range t.Values() {
		if v != 1 && v != 5 {
			return false, true
		}
	}
	return !f.Settings[KernelSoftReboot].Measured(), true
}
