package hsm

import (
	"bytes"
	"crypto"
	"math/big"
	"testing"
)

// Project Wycheproof (Apache License 2.0), testvectors_v1/rsa_oaep_2048_sha256_mgf1sha256_test.json: the key of its group and the
// valid cases 3 and 7. SHA-256, MGF1 with SHA-256, no label: the padding of profile P1.
const (
	wycheproofN = "a2b451a07d0aa5f96e455671513550514a8a5b462ebef717094fa1fee82224e637f9746d3f7cafd31878d80325b6ef5a1700f65903b469429e89d6eac8845097" +
		"b5ab393189db92512ed8a7711a1253facd20f79c15e8247f3d3e42e46e48c98e254a2fe9765313a03eff8f17e1a029397a1fa26a8dce26f490ed81299615d981" +
		"4c22da610428e09c7d9658594266f5c021d0fceca08d945a12be82de4d1ece6b4c03145b5d3495d4ed5411eb878daf05fd7afc3e09ada0f1126422f590975a19" +
		"69816f48698bcbba1b4d9cae79d460d8f9f85e7975005d9bc22c4e5ac0f7c1a45d12569a62807d3b9a02e5a530e773066f453d1f5b4c2e9cf7820283f742b9d5"
	wycheproofD = "24cdc62317f5d72a6f6ba6cc9632899b01d1ff28867d72f61688995bc855a4e420a8405250089bdb13cf8e09543827b748b9d27fbb2b4d9e20af8c5a6a862796" +
		"d1a4cc18ad16ea678bc1bd4a83bbbe9c5e57453b5ce7388e41a3ba4ce2b77b4438a229e954f720dae0353dc088ac8a76b26dc276f8e1b7851ddd6398ad16ff2e" +
		"78195123b9b036e945c38c9d12434f6df76fe22359eb3e1ac9c011678fc926fad3ae475a4fffff55feb2d147e9c894f4c0e29a599e762462482d968bf4278094" +
		"5fc0d2c31c573c4431b8f4fe8b8c67bec815abd44f7a86edca1c2308737358d2c2ae5e2e0e2dadf730980262377e58b13b7d9992060a0bc870ccfdb4a9319ee1"
)

var wycheproof = map[string]struct{ msg, ciphertext string }{
	"case 3": {"54657374", "5eab3f0741e63986ed647d53e1cd71df041986900803d0f99c68355d249a15a47dc5b4f70a191477654299e5a2731f3b4eec76dea18262fc696ac794e5f66cbf" +
		"cddac4472c578e246c26707598055584540b839836b1404c5611ae558a984cee8fd036cea924e0be2474a940f61e0acc14fcae95ebdc59942a9ce9af9a9c8199" +
		"9f7f6815f057ffdc2533cb15d6391d1e2d95f16f9c04209c889a4c359c7d2926d28a66e2b030a416b928d2825627998e5191fb4983a6e65024262d94fc09187a" +
		"2d78162122433251d1bfcc8e507d06eba2d229c10031261da32ab8ccd15f1c5f9fbf07ed158483d736a110af4b44d6a4da60d6cb519b4454213cf9f0dc560f2b"},
	"case 7": {"e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "096958786ee7972050d67a9e4b69d6c6af7db7cc674386df725770dd29129b82" +
		"6e39552330104c8d71e6cc3a3014dd2f61b54153af51b0438d447ee939f9e3c13bb8b00a37dea6a068f6c9d27e848b1be7a1eeeb3ee50b78036fba95ae46948c" +
		"a5b13f356ea24db10f60dc09e4b8bad8f766b668ef72524432080a0ce00ed676d6d5e354984b1078520412525848156d06f0652469f95791baa3d9a798ae5370" +
		"94f76f976faecd5c9ce0c930a75910c63dacf63485cb4b5e7bdbcf4d80e74037eaa1a8fe4b52930bec6be99cf6ac88cf5878dbf6859d456a95dbc34654eec425" +
		"de84ca2a535d517403a9aada827e7d0093ecfc97ed056a7652825e9a45cb2dcb"},
}

func TestOpensPublishedOAEPVectorsOfSHA256(t *testing.T) {
	n, d := new(big.Int).SetBytes(fromHex(t, wycheproofN)), new(big.Int).SetBytes(fromHex(t, wycheproofD))
	p := OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	for name, v := range wycheproof {
		got, err := DecodeOAEP(raw(n, d, fromHex(t, v.ciphertext)), p)
		if err != nil || !bytes.Equal(got, fromHex(t, v.msg)) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		for label, wrong := range map[string]OAEP{"another hash": {Hash: crypto.SHA1, MGF: crypto.SHA256}, "another mask": {Hash: crypto.SHA256, MGF: crypto.SHA1},
			"a label": {Hash: crypto.SHA256, MGF: crypto.SHA256, Label: []byte{0}}} {
			if _, err := DecodeOAEP(raw(n, d, fromHex(t, v.ciphertext)), wrong); err != error(ErrDecrypt) {
				t.Errorf("%s with %s: %v", name, label, err)
			}
		}
	}
}
