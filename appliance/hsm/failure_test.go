package hsm

import (
	"strconv"
	"strings"
	"testing"
)

// TestEveryReturnValueHasItsConsequence holds the whole list of CKR_* values of
// PKCS#11 v2.40 against what the node does about each.
func TestEveryReturnValueHasItsConsequence(t *testing.T) {
	list := map[Class]string{
		ClassSession: `CANCEL=1 FUNCTION_CANCELED=50 KEY_HANDLE_INVALID=60 KEY_CHANGED=65 OBJECT_HANDLE_INVALID=82 OPERATION_ACTIVE=90
			OPERATION_NOT_INITIALIZED=91 SESSION_CLOSED=b0 SESSION_HANDLE_INVALID=b3 UNWRAPPING_KEY_HANDLE_INVALID=f0
			WRAPPING_KEY_HANDLE_INVALID=113 SAVED_STATE_INVALID=160`,
		ClassLogin: `USER_ALREADY_LOGGED_IN=100 USER_NOT_LOGGED_IN=101`,
		ClassModule: `HOST_MEMORY=2 SLOT_ID_INVALID=3 GENERAL_ERROR=5 FUNCTION_FAILED=6 DEVICE_ERROR=30 DEVICE_MEMORY=31 DEVICE_REMOVED=32
			SESSION_COUNT=b1 SESSION_EXISTS=b6 SESSION_READ_ONLY_EXISTS=b7 SESSION_READ_WRITE_SO_EXISTS=b8 TOKEN_NOT_PRESENT=e0
			TOKEN_NOT_RECOGNIZED=e1 CRYPTOKI_NOT_INITIALIZED=190 CRYPTOKI_ALREADY_INITIALIZED=191 MUTEX_BAD=1a0 MUTEX_NOT_LOCKED=1a1
			FIPS_SELF_TEST_FAILED=1b6 LIBRARY_LOAD_FAILED=1b7 VENDOR_DEFINED=80000000`,
		ClassFatal: `NEED_TO_CREATE_THREADS=9 CANT_LOCK=a PIN_INCORRECT=a0 PIN_INVALID=a1 PIN_LEN_RANGE=a2 PIN_EXPIRED=a3 PIN_LOCKED=a4
			USER_PIN_NOT_INITIALIZED=102 USER_TYPE_INVALID=103 USER_ANOTHER_ALREADY_LOGGED_IN=104 USER_TOO_MANY_TYPES=105 NEW_PIN_MODE=1b0
			NEXT_OTP=1b1 PIN_TOO_WEAK=1b8`,
		ClassNone: `ARGUMENTS_BAD=7 NO_EVENT=8 ATTRIBUTE_READ_ONLY=10 ATTRIBUTE_SENSITIVE=11 ATTRIBUTE_TYPE_INVALID=12 ATTRIBUTE_VALUE_INVALID=13
			ACTION_PROHIBITED=1b DATA_INVALID=20 DATA_LEN_RANGE=21 ENCRYPTED_DATA_INVALID=40 ENCRYPTED_DATA_LEN_RANGE=41
			FUNCTION_NOT_PARALLEL=51 FUNCTION_NOT_SUPPORTED=54 KEY_SIZE_RANGE=62 KEY_TYPE_INCONSISTENT=63 KEY_NOT_NEEDED=64 KEY_NEEDED=66
			KEY_INDIGESTIBLE=67 KEY_FUNCTION_NOT_PERMITTED=68 KEY_NOT_WRAPPABLE=69 KEY_UNEXTRACTABLE=6a MECHANISM_INVALID=70
			MECHANISM_PARAM_INVALID=71 SESSION_PARALLEL_NOT_SUPPORTED=b4 SESSION_READ_ONLY=b5 SIGNATURE_INVALID=c0 SIGNATURE_LEN_RANGE=c1
			TEMPLATE_INCOMPLETE=d0 TEMPLATE_INCONSISTENT=d1 TOKEN_WRITE_PROTECTED=e2 UNWRAPPING_KEY_SIZE_RANGE=f1
			UNWRAPPING_KEY_TYPE_INCONSISTENT=f2 WRAPPED_KEY_INVALID=110 WRAPPED_KEY_LEN_RANGE=112 WRAPPING_KEY_SIZE_RANGE=114
			WRAPPING_KEY_TYPE_INCONSISTENT=115 RANDOM_SEED_NOT_SUPPORTED=120 RANDOM_NO_RNG=121 DOMAIN_PARAMS_INVALID=130
			CURVE_NOT_SUPPORTED=140 BUFFER_TOO_SMALL=150 INFORMATION_SENSITIVE=170 STATE_UNSAVEABLE=180 EXCEEDED_MAX_ITERATIONS=1b5
			PUBLIC_KEY_INVALID=1b9 FUNCTION_REJECTED=200`,
	}
	seen := map[uint32]bool{}
	for class, text := range list {
		for _, entry := range strings.Fields(text) {
			name, hex, _ := strings.Cut(entry, "=")
			n, err := strconv.ParseUint(hex, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			c := uint32(n)
			seen[c] = true
			e := Classify("sign", c)
			if e.Class != class || e.Code != c || CodeName(c) != "CKR_"+name {
				t.Errorf("%s: class %q, want %q, name %s", name, e.Class, class, CodeName(c))
			}
			want := KindUnavailable // try again
			switch class {
			case ClassNone:
				want = KindRequest
			case ClassFatal:
				want = KindFailed
			}
			if e.Kind != want || e.Retryable() != (want == KindUnavailable) {
				t.Errorf("%s: kind %q, want %q", name, e.Kind, want)
			}
			if (class == ClassFatal || class == ClassModule) && e.Remedy == "" {
				t.Errorf("%s: no remedy", name)
			}
		}
	}
	if len(seen) != 94 || len(codes) != len(seen) {
		t.Errorf("the list has %d values, the table %d", len(seen), len(codes))
	}
	for _, vendor := range []uint32{0x80000001, 0xcafe, 0xffffffff} {
		if e := Classify("sign", vendor); e.Class != ClassModule || e.Remedy == "" || !strings.HasPrefix(CodeName(vendor), "CKR 0x") {
			t.Errorf("a vendor's code: %+v, %s", e, CodeName(vendor))
		}
	}
}
