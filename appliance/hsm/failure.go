package hsm

import (
	"errors"
	"fmt"
)

// Kind tells a caller what to do with a failed call.
type Kind string

// The kinds of failures.
const (
	KindDecrypt     Kind = "decrypt-failed" // wrong ciphertext, key or parameters: never said which
	KindNoKey       Kind = "no-such-key"    // the token has no key with this reference
	KindUsage       Kind = "usage-refused"  // the key's role forbids the operation
	KindRequest     Kind = "bad-request"    // malformed call, or something the token does not offer
	KindLocked      Kind = "locked"         // no module configured or no PIN given yet
	KindBusy        Kind = "busy"           // too many calls are waiting: try again
	KindUnavailable Kind = "unavailable"    // the token is away or restarting: try again
	KindFailed      Kind = "failed"         // stopped until a person acts: see Remedy
)

// Class is what a PKCS#11 error means for the session that met it.
type Class string

// The classes, from harmless to final.
const (
	ClassNone    Class = ""              // says nothing about the token
	ClassSession Class = "retry-session" // open new sessions and repeat
	ClassLogin   Class = "relogin"       // the login is gone: new worker, new login
	ClassModule  Class = "reload-module" // device, link or module is sick: new worker
	ClassFatal   Class = "fatal"         // repeating would harm: stop and ask
)

// Error is a failed token operation.
type Error struct {
	Kind   Kind   `json:"kind"`
	Class  Class  `json:"class,omitempty"`
	Code   uint32 `json:"code,omitempty"`   // CKR_* value, 0 when the error is ours
	Detail string `json:"detail,omitempty"` // lower case, no secret
	Remedy string `json:"remedy,omitempty"`
}

// Error gives kind, detail, PKCS#11 name and remedy in one line.
func (e *Error) Error() string {
	s := "hsm: " + e.What()
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// What is Error without prefix and remedy.
func (e *Error) What() string {
	s := string(e.Kind)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Code != 0 {
		s += " (" + CodeName(e.Code) + ")"
	}
	return s
}

// Is makes errors.Is compare by kind, so that ErrDecrypt and its like match
// whatever the detail is.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Detail == "" && t.Code == 0
}

// Retryable tells whether the same call may succeed later without anybody
// doing anything.
func (e *Error) Retryable() bool { return e.Kind == KindBusy || e.Kind == KindUnavailable }

// Errors to compare with errors.Is.
var (
	ErrDecrypt     = &Error{Kind: KindDecrypt}
	ErrNoKey       = &Error{Kind: KindNoKey}
	ErrUsage       = &Error{Kind: KindUsage}
	ErrRequest     = &Error{Kind: KindRequest}
	ErrLocked      = &Error{Kind: KindLocked}
	ErrBusy        = &Error{Kind: KindBusy}
	ErrUnavailable = &Error{Kind: KindUnavailable}
	ErrFailed      = &Error{Kind: KindFailed}
)

// AsError returns err as *Error; anything else becomes an unavailable token,
// class reload-module, with the text as detail.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindUnavailable, Class: ClassModule, Detail: err.Error(), Remedy: remedyLink}
}

func badRequest(format string, args ...any) *Error {
	return &Error{Kind: KindRequest, Detail: fmt.Sprintf(format, args...)}
}

const (
	remedyLink    = "check the HSM's power, cable or network; the node reconnects by itself"
	remedyPIN     = "enter the PIN again; the node tries a refused PIN only once because tokens lock"
	remedyReset   = "have the token's security officer reset the PIN, then enter the new one"
	remedyModule  = "see the log of hsm; a new worker was started with a fresh module"
	remedyThreads = "this module cannot be used from several threads: ask its vendor for one that can"
	remedyOfficer = "end the other login at the token, above all the security officer's"
	remedyCap     = "the token does not offer this; see the list of supported tokens"
)

// code is one line of the classification.
type code struct {
	name   string
	class  Class
	remedy string
}

// codes classifies all return values of PKCS#11 v2.40 (section 5.1 of the base
// specification) but CKR_OK. ClassNone is about the call alone: its key, its
// mechanism, its data; its session is closed and others go on. A value that is
// missing here counts as reload-module: a new worker is always safe, only a new
// login with a refused PIN is not.
var codes = map[uint32]code{
	0x1:        {"CKR_CANCEL", ClassSession, ""},
	0x2:        {"CKR_HOST_MEMORY", ClassModule, remedyModule},
	0x3:        {"CKR_SLOT_ID_INVALID", ClassModule, remedyLink},
	0x5:        {"CKR_GENERAL_ERROR", ClassModule, remedyLink},
	0x6:        {"CKR_FUNCTION_FAILED", ClassModule, remedyLink},
	0x7:        {"CKR_ARGUMENTS_BAD", ClassNone, remedyCap},
	0x8:        {"CKR_NO_EVENT", ClassNone, ""},
	0x9:        {"CKR_NEED_TO_CREATE_THREADS", ClassFatal, remedyThreads},
	0xa:        {"CKR_CANT_LOCK", ClassFatal, remedyThreads},
	0x10:       {"CKR_ATTRIBUTE_READ_ONLY", ClassNone, remedyCap},
	0x11:       {"CKR_ATTRIBUTE_SENSITIVE", ClassNone, ""},
	0x12:       {"CKR_ATTRIBUTE_TYPE_INVALID", ClassNone, remedyCap},
	0x13:       {"CKR_ATTRIBUTE_VALUE_INVALID", ClassNone, remedyCap},
	0x1b:       {"CKR_ACTION_PROHIBITED", ClassNone, remedyCap},
	0x20:       {"CKR_DATA_INVALID", ClassNone, ""},
	0x21:       {"CKR_DATA_LEN_RANGE", ClassNone, ""},
	0x30:       {"CKR_DEVICE_ERROR", ClassModule, remedyLink},
	0x31:       {"CKR_DEVICE_MEMORY", ClassModule, "free space on the token"},
	0x32:       {"CKR_DEVICE_REMOVED", ClassModule, remedyLink},
	0x40:       {"CKR_ENCRYPTED_DATA_INVALID", ClassNone, ""},
	0x41:       {"CKR_ENCRYPTED_DATA_LEN_RANGE", ClassNone, ""},
	0x50:       {"CKR_FUNCTION_CANCELED", ClassSession, ""},
	0x51:       {"CKR_FUNCTION_NOT_PARALLEL", ClassNone, remedyCap},
	0x54:       {"CKR_FUNCTION_NOT_SUPPORTED", ClassNone, remedyCap},
	0x60:       {"CKR_KEY_HANDLE_INVALID", ClassSession, ""},
	0x62:       {"CKR_KEY_SIZE_RANGE", ClassNone, remedyCap},
	0x63:       {"CKR_KEY_TYPE_INCONSISTENT", ClassNone, ""},
	0x64:       {"CKR_KEY_NOT_NEEDED", ClassNone, ""},
	0x65:       {"CKR_KEY_CHANGED", ClassSession, ""},
	0x66:       {"CKR_KEY_NEEDED", ClassNone, ""},
	0x67:       {"CKR_KEY_INDIGESTIBLE", ClassNone, ""},
	0x68:       {"CKR_KEY_FUNCTION_NOT_PERMITTED", ClassNone, ""},
	0x69:       {"CKR_KEY_NOT_WRAPPABLE", ClassNone, ""},
	0x6a:       {"CKR_KEY_UNEXTRACTABLE", ClassNone, ""},
	0x70:       {"CKR_MECHANISM_INVALID", ClassNone, remedyCap},
	0x71:       {"CKR_MECHANISM_PARAM_INVALID", ClassNone, remedyCap},
	0x82:       {"CKR_OBJECT_HANDLE_INVALID", ClassSession, ""},
	0x90:       {"CKR_OPERATION_ACTIVE", ClassSession, ""},
	0x91:       {"CKR_OPERATION_NOT_INITIALIZED", ClassSession, ""},
	0xa0:       {"CKR_PIN_INCORRECT", ClassFatal, remedyPIN},
	0xa1:       {"CKR_PIN_INVALID", ClassFatal, remedyPIN},
	0xa2:       {"CKR_PIN_LEN_RANGE", ClassFatal, remedyPIN},
	0xa3:       {"CKR_PIN_EXPIRED", ClassFatal, remedyReset},
	0xa4:       {"CKR_PIN_LOCKED", ClassFatal, remedyReset},
	0xb0:       {"CKR_SESSION_CLOSED", ClassSession, ""},
	0xb1:       {"CKR_SESSION_COUNT", ClassModule, "the token has no session left; see who else uses it"},
	0xb3:       {"CKR_SESSION_HANDLE_INVALID", ClassSession, ""},
	0xb4:       {"CKR_SESSION_PARALLEL_NOT_SUPPORTED", ClassNone, remedyCap},
	0xb5:       {"CKR_SESSION_READ_ONLY", ClassNone, "allow this PIN to write on the token"},
	0xb6:       {"CKR_SESSION_EXISTS", ClassModule, remedyModule},
	0xb7:       {"CKR_SESSION_READ_ONLY_EXISTS", ClassModule, remedyModule},
	0xb8:       {"CKR_SESSION_READ_WRITE_SO_EXISTS", ClassModule, remedyOfficer},
	0xc0:       {"CKR_SIGNATURE_INVALID", ClassNone, ""},
	0xc1:       {"CKR_SIGNATURE_LEN_RANGE", ClassNone, ""},
	0xd0:       {"CKR_TEMPLATE_INCOMPLETE", ClassNone, remedyCap},
	0xd1:       {"CKR_TEMPLATE_INCONSISTENT", ClassNone, remedyCap},
	0xe0:       {"CKR_TOKEN_NOT_PRESENT", ClassModule, remedyLink},
	0xe1:       {"CKR_TOKEN_NOT_RECOGNIZED", ClassModule, remedyLink},
	0xe2:       {"CKR_TOKEN_WRITE_PROTECTED", ClassNone, "allow writing on the token"},
	0xf0:       {"CKR_UNWRAPPING_KEY_HANDLE_INVALID", ClassSession, ""},
	0xf1:       {"CKR_UNWRAPPING_KEY_SIZE_RANGE", ClassNone, remedyCap},
	0xf2:       {"CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", ClassNone, ""},
	0x100:      {"CKR_USER_ALREADY_LOGGED_IN", ClassLogin, ""},
	0x101:      {"CKR_USER_NOT_LOGGED_IN", ClassLogin, ""},
	0x102:      {"CKR_USER_PIN_NOT_INITIALIZED", ClassFatal, "set a user PIN on the token first"},
	0x103:      {"CKR_USER_TYPE_INVALID", ClassFatal, "the token does not accept an ordinary user's login"},
	0x104:      {"CKR_USER_ANOTHER_ALREADY_LOGGED_IN", ClassFatal, remedyOfficer},
	0x105:      {"CKR_USER_TOO_MANY_TYPES", ClassFatal, remedyOfficer},
	0x110:      {"CKR_WRAPPED_KEY_INVALID", ClassNone, ""},
	0x112:      {"CKR_WRAPPED_KEY_LEN_RANGE", ClassNone, ""},
	0x113:      {"CKR_WRAPPING_KEY_HANDLE_INVALID", ClassSession, ""},
	0x114:      {"CKR_WRAPPING_KEY_SIZE_RANGE", ClassNone, remedyCap},
	0x115:      {"CKR_WRAPPING_KEY_TYPE_INCONSISTENT", ClassNone, ""},
	0x120:      {"CKR_RANDOM_SEED_NOT_SUPPORTED", ClassNone, remedyCap},
	0x121:      {"CKR_RANDOM_NO_RNG", ClassNone, remedyCap},
	0x130:      {"CKR_DOMAIN_PARAMS_INVALID", ClassNone, remedyCap},
	0x140:      {"CKR_CURVE_NOT_SUPPORTED", ClassNone, remedyCap},
	0x150:      {"CKR_BUFFER_TOO_SMALL", ClassNone, ""},
	0x160:      {"CKR_SAVED_STATE_INVALID", ClassSession, ""},
	0x170:      {"CKR_INFORMATION_SENSITIVE", ClassNone, ""},
	0x180:      {"CKR_STATE_UNSAVEABLE", ClassNone, ""},
	0x190:      {"CKR_CRYPTOKI_NOT_INITIALIZED", ClassModule, remedyModule},
	0x191:      {"CKR_CRYPTOKI_ALREADY_INITIALIZED", ClassModule, remedyModule},
	0x1a0:      {"CKR_MUTEX_BAD", ClassModule, remedyModule},
	0x1a1:      {"CKR_MUTEX_NOT_LOCKED", ClassModule, remedyModule},
	0x1b0:      {"CKR_NEW_PIN_MODE", ClassFatal, remedyReset},
	0x1b1:      {"CKR_NEXT_OTP", ClassFatal, remedyReset},
	0x1b5:      {"CKR_EXCEEDED_MAX_ITERATIONS", ClassNone, ""},
	0x1b6:      {"CKR_FIPS_SELF_TEST_FAILED", ClassModule, "the HSM failed its own test: call its vendor if it does so again"},
	0x1b7:      {"CKR_LIBRARY_LOAD_FAILED", ClassModule, "a library that the module needs is missing in the image"},
	0x1b8:      {"CKR_PIN_TOO_WEAK", ClassFatal, remedyReset},
	0x1b9:      {"CKR_PUBLIC_KEY_INVALID", ClassNone, ""},
	0x200:      {"CKR_FUNCTION_REJECTED", ClassNone, "approve the operation at the token"},
	0x80000000: {"CKR_VENDOR_DEFINED", ClassModule, remedyLink},
}

// codePINLocked is what a token says whose PIN was tried too often.
const codePINLocked = 0xa4

// CodeName gives the name of a CKR_* value, or its number.
func CodeName(c uint32) string {
	if e, ok := codes[c]; ok {
		return e.name
	}
	return fmt.Sprintf("CKR 0x%X", c)
}

// Classify makes an Error of a CKR_* value that operation op got.
func Classify(op string, c uint32) *Error {
	e, ok := codes[c]
	if !ok {
		e = code{class: ClassModule, remedy: remedyLink}
	}
	kind := KindUnavailable
	switch e.class {
	case ClassNone:
		kind = KindRequest
	case ClassFatal:
		kind = KindFailed
	}
	return &Error{Kind: kind, Class: e.class, Code: c, Detail: op, Remedy: e.remedy}
}
