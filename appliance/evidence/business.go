package evidence

// What may be measured where (PFP 3.3.4 and 10.4.1, and the logs in testdata). The list is wide for PCR 0 to 6, which give no facts: there
// it only keeps out what would pretend to be something else. It is narrow for PCR 7 and 11 to 14.

const (
	inPlatform = 1 << iota // PCR 0 to 3: firmware, its configuration, option ROMs
	inBoot                 // PCR 4 and 5: boot manager and partition table
	inVendor               // PCR 6
	inSecure               // PCR 7
	inSystem               // PCR 8 to 10 and 15: operating systems other than Windows
	inAccess               // PCR 11
	inWindows              // PCR 12 to 14
)

var business = map[EventType]int{
	EventSeparator:     inPlatform | inBoot | inVendor | inSecure | inSystem | inAccess | inWindows,
	EventVariable:      inPlatform | inBoot | inSecure,
	EventVariableAuthz: inSecure,
	EventDevicePolicy:  inSecure,
	EventDeviceAuthz:   inSecure,
	EventEFIAction:     inPlatform | inBoot | inVendor | inSecure | inSystem,
	EventCompactHash:   inPlatform | inBoot | inVendor | inSystem | inAccess,
	EventTag:           inPlatform | inBoot | inVendor | inSystem | inWindows,
	EventIPL:           inBoot | inSystem,
	EventAction:        inPlatform | inBoot | inVendor | inSystem,
	EventCRTMVersion:   inPlatform,
	0x00000001:         inPlatform,          // EV_POST_CODE
	0x00000007:         inPlatform,          // EV_S_CRTM_CONTENTS
	0x00000009:         inPlatform,          // EV_CPU_MICROCODE
	0x0000000a:         inPlatform,          // EV_PLATFORM_CONFIG_FLAGS
	0x0000000b:         inPlatform,          // EV_TABLE_OF_DEVICES
	0x0000000e:         inBoot,              // EV_IPL_PARTITION_DATA
	0x0000000f:         inPlatform,          // EV_NONHOST_CODE
	0x00000010:         inPlatform,          // EV_NONHOST_CONFIG
	0x00000011:         inPlatform,          // EV_NONHOST_INFO
	0x00000012:         inPlatform | inBoot, // EV_OMIT_BOOT_DEVICE_EVENTS
	0x00000013:         inPlatform,          // EV_POST_CODE2
	EventBootVariable:  inPlatform | inBoot,
	EventBootApp:       inPlatform | inBoot,
	0x80000004:         inPlatform | inBoot, // EV_EFI_BOOT_SERVICES_DRIVER
	0x80000005:         inPlatform | inBoot, // EV_EFI_RUNTIME_SERVICES_DRIVER
	EventGPT:           inBoot,
	0x80000008:         inPlatform,          // EV_EFI_PLATFORM_FIRMWARE_BLOB
	0x80000009:         inPlatform,          // EV_EFI_HANDOFF_TABLES
	0x8000000a:         inPlatform,          // EV_EFI_PLATFORM_FIRMWARE_BLOB2
	0x8000000b:         inPlatform,          // EV_EFI_HANDOFF_TABLES2
	0x8000000c:         inPlatform | inBoot, // EV_EFI_VARIABLE_BOOT2
	0x8000000d:         inBoot,              // EV_EFI_GPT_EVENT2
	0x80000010:         inPlatform,          // EV_EFI_HCRTM_EVENT
	0x800000e1:         inPlatform,          // EV_EFI_SPDM_FIRMWARE_BLOB
	0x800000e2:         inPlatform,          // EV_EFI_SPDM_FIRMWARE_CONFIG
}

func allowed(pcr int, t EventType) bool {
	var place int
	switch {
	case pcr <= 3:
		place = inPlatform
	case pcr <= 5:
		place = inBoot
	case pcr == 6:
		place = inVendor
	case pcr == 7:
		place = inSecure
	case pcr == 11:
		place = inAccess
	case pcr >= 12 && pcr <= 14:
		place = inWindows
	case pcr <= 15:
		place = inSystem
	default:
		return true
	}
	return business[t]&place != 0
}
