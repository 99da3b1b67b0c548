package hsm

import (
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// The numbers of PKCS #11 that the package uses (OASIS PKCS #11 Specification Version 3.1,
// pkcs11t.h). They are here and not from a library so that the agent's side needs no cgo.
const (
	ckoPublicKey  = 2
	ckoPrivateKey = 3
	ckoSecretKey  = 4

	ckkRSA           = 0x00
	ckkEC            = 0x03
	ckkGenericSecret = 0x10
	ckkAES           = 0x1f
	ckkECEdwards     = 0x40
	ckkECMontgomery  = 0x41

	ckaClass              = 0x000
	ckaToken              = 0x001
	ckaPrivate            = 0x002
	ckaLabel              = 0x003
	ckaValue              = 0x011
	ckaKeyType            = 0x100
	ckaID                 = 0x102
	ckaSensitive          = 0x103
	ckaEncrypt            = 0x104
	ckaDecrypt            = 0x105
	ckaWrap               = 0x106
	ckaUnwrap             = 0x107
	ckaSign               = 0x108
	ckaSignRecover        = 0x109
	ckaVerify             = 0x10a
	ckaVerifyRecover      = 0x10b
	ckaDerive             = 0x10c
	ckaModulus            = 0x120
	ckaModulusBits        = 0x121
	ckaPublicExponent     = 0x122
	ckaPrivateExponent    = 0x123
	ckaPrime1             = 0x124
	ckaPrime2             = 0x125
	ckaExponent1          = 0x126
	ckaExponent2          = 0x127
	ckaCoefficient        = 0x128
	ckaValueLen           = 0x161
	ckaExtractable        = 0x162
	ckaLocal              = 0x163
	ckaECParams           = 0x180
	ckaECPoint            = 0x181
	ckaAlwaysAuthenticate = 0x202
	ckaNSSDB              = 0xd5a0db00 // a vendor's: the public value of an imported private key

	ckmRSAKeyPairGen          = 0x0000
	ckmRSAPKCS                = 0x0001
	ckmRSAX509                = 0x0003
	ckmRSAOAEP                = 0x0009
	ckmRSAPSS                 = 0x000d
	ckmSHA1                   = 0x0220
	ckmSHA256                 = 0x0250
	ckmSHA384                 = 0x0260
	ckmSHA512                 = 0x0270
	ckmECKeyPairGen           = 0x1040
	ckmECDSA                  = 0x1041
	ckmECDH1Derive            = 0x1050
	ckmECEdwardsKeyPairGen    = 0x1055
	ckmECMontgomeryKeyPairGen = 0x1056
	ckmEDDSA                  = 0x1057
	ckmAESKeyGen              = 0x1080
	ckmAESKeyWrapPad          = 0x210a

	ckgMGF1SHA1   = 1
	ckgMGF1SHA256 = 2
	ckgMGF1SHA384 = 3
	ckgMGF1SHA512 = 4

	cksUserRead  = 1
	cksUserWrite = 3

	ckfLoginRequired    = 0x00000004
	ckfPINInitialized   = 0x00000008
	ckfProtectedPath    = 0x00000100
	ckfTokenInitialized = 0x00000400
	ckfPINCountLow      = 0x00010000
	ckfPINFinalTry      = 0x00020000
	ckfPINLocked        = 0x00040000
)

// Code is a CK_RV, what a PKCS #11 function returned. It is an error.
type Code uint64

// The codes that the package decides by.
const (
	ckrOK                   Code = 0x000
	ckrHostMemory           Code = 0x002
	ckrSlotIDInvalid        Code = 0x003
	ckrGeneralError         Code = 0x005
	ckrFunctionFailed       Code = 0x006
	ckrArgumentsBad         Code = 0x007
	ckrAttributeReadOnly    Code = 0x010
	ckrAttributeSensitive   Code = 0x011
	ckrAttributeTypeInvalid Code = 0x012
	ckrAttributeValue       Code = 0x013
	ckrDataLenRange         Code = 0x021
	ckrDeviceError          Code = 0x030
	ckrDeviceMemory         Code = 0x031
	ckrDeviceRemoved        Code = 0x032
	ckrEncryptedInvalid     Code = 0x040
	ckrEncryptedLenRange    Code = 0x041
	ckrFunctionNotSupported Code = 0x054
	ckrKeyHandleInvalid     Code = 0x060
	ckrKeySizeRange         Code = 0x062
	ckrKeyTypeInconsistent  Code = 0x063
	ckrFunctionNotPermitted Code = 0x068
	ckrKeyUnextractable     Code = 0x06a
	ckrMechanismInvalid     Code = 0x070
	ckrMechanismParam       Code = 0x071
	ckrObjectHandleInvalid  Code = 0x082
	ckrOperationActive      Code = 0x090
	ckrPINIncorrect         Code = 0x0a0
	ckrPINInvalid           Code = 0x0a1
	ckrPINLenRange          Code = 0x0a2
	ckrPINExpired           Code = 0x0a3
	ckrPINLocked            Code = 0x0a4
	ckrSessionClosed        Code = 0x0b0
	ckrSessionCount         Code = 0x0b1
	ckrSessionInvalid       Code = 0x0b3
	ckrSessionReadOnly      Code = 0x0b5
	ckrTemplateInconsistent Code = 0x0d1
	ckrTokenNotPresent      Code = 0x0e0
	ckrTokenNotRecognized   Code = 0x0e1
	ckrTokenWriteProtected  Code = 0x0e2
	ckrUserAlreadyLoggedIn  Code = 0x100
	ckrUserNotLoggedIn      Code = 0x101
	ckrUserPINNotSet        Code = 0x102
	ckrDomainParams         Code = 0x130
	ckrCurveNotSupported    Code = 0x140
	ckrNotInitialized       Code = 0x190
)

var codeNames = map[Code]string{
	ckrHostMemory: "HOST_MEMORY", ckrSlotIDInvalid: "SLOT_ID_INVALID", ckrGeneralError: "GENERAL_ERROR",
	ckrFunctionFailed: "FUNCTION_FAILED", ckrArgumentsBad: "ARGUMENTS_BAD",
	ckrAttributeReadOnly: "ATTRIBUTE_READ_ONLY", ckrTemplateInconsistent: "TEMPLATE_INCONSISTENT",
	ckrAttributeSensitive: "ATTRIBUTE_SENSITIVE", ckrAttributeTypeInvalid: "ATTRIBUTE_TYPE_INVALID",
	ckrAttributeValue: "ATTRIBUTE_VALUE_INVALID", ckrDataLenRange: "DATA_LEN_RANGE",
	ckrDeviceError: "DEVICE_ERROR", ckrDeviceMemory: "DEVICE_MEMORY", ckrDeviceRemoved: "DEVICE_REMOVED",
	ckrEncryptedInvalid: "ENCRYPTED_DATA_INVALID", ckrEncryptedLenRange: "ENCRYPTED_DATA_LEN_RANGE",
	ckrFunctionNotSupported: "FUNCTION_NOT_SUPPORTED", ckrKeyHandleInvalid: "KEY_HANDLE_INVALID",
	ckrKeySizeRange: "KEY_SIZE_RANGE", ckrKeyTypeInconsistent: "KEY_TYPE_INCONSISTENT",
	ckrFunctionNotPermitted: "KEY_FUNCTION_NOT_PERMITTED", ckrKeyUnextractable: "KEY_UNEXTRACTABLE",
	ckrMechanismInvalid: "MECHANISM_INVALID", ckrMechanismParam: "MECHANISM_PARAM_INVALID",
	ckrObjectHandleInvalid: "OBJECT_HANDLE_INVALID", ckrOperationActive: "OPERATION_ACTIVE",
	ckrPINIncorrect: "PIN_INCORRECT", ckrPINInvalid: "PIN_INVALID", ckrPINLenRange: "PIN_LEN_RANGE",
	ckrPINExpired: "PIN_EXPIRED", ckrPINLocked: "PIN_LOCKED", ckrSessionClosed: "SESSION_CLOSED",
	ckrSessionCount: "SESSION_COUNT", ckrSessionInvalid: "SESSION_HANDLE_INVALID",
	ckrSessionReadOnly: "SESSION_READ_ONLY", ckrTokenNotPresent: "TOKEN_NOT_PRESENT",
	ckrTokenNotRecognized: "TOKEN_NOT_RECOGNIZED", ckrTokenWriteProtected: "TOKEN_WRITE_PROTECTED",
	ckrUserAlreadyLoggedIn: "USER_ALREADY_LOGGED_IN", ckrUserNotLoggedIn: "USER_NOT_LOGGED_IN",
	ckrUserPINNotSet: "USER_PIN_NOT_INITIALIZED", ckrDomainParams: "DOMAIN_PARAMS_INVALID",
	ckrCurveNotSupported: "CURVE_NOT_SUPPORTED", ckrNotInitialized: "CRYPTOKI_NOT_INITIALIZED",
}

// Error returns the name that the standard has for the code, else its number.
func (c Code) Error() string {
	if name, ok := codeNames[c]; ok {
		return "CKR_" + name
	}
	return fmt.Sprintf("CKR 0x%x", uint64(c))
}

// Is makes a code that means a thing which package token has an error for equal to that error.
func (c Code) Is(target error) bool { return target != nil && c.meaning() == target }

func (c Code) meaning() error {
	switch c {
	case ckrDeviceError, ckrDeviceMemory, ckrDeviceRemoved, ckrTokenNotPresent, ckrTokenNotRecognized,
		ckrSlotIDInvalid, ckrGeneralError, ckrNotInitialized, ckrSessionClosed, ckrSessionInvalid,
		ckrHostMemory, ckrFunctionFailed, ckrSessionCount:
		return token.ErrAbsent
	case ckrPINIncorrect, ckrPINInvalid, ckrPINLenRange:
		return token.ErrAuthWrong
	case ckrPINLocked:
		return token.ErrLockedOut
	case ckrUserNotLoggedIn, ckrUserPINNotSet, ckrPINExpired:
		return token.ErrAuthNeeded
	case ckrMechanismInvalid, ckrMechanismParam, ckrFunctionNotSupported, ckrCurveNotSupported, ckrDomainParams,
		ckrFunctionNotPermitted, ckrSessionReadOnly, ckrTokenWriteProtected:
		return token.ErrUnsupported
	case ckrObjectHandleInvalid, ckrKeyHandleInvalid:
		return token.ErrNotFound
	}
	return nil
}

// codeOf returns the code in the chain of err, ckrOK if there is none.
func codeOf(err error) Code {
	var c Code
	errors.As(err, &c)
	return c
}
