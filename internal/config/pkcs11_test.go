package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestParsePKCS11(t *testing.T) {
	t.Parallel()
	const good = "[[pkcs11]]\nmodule = '/usr/lib/a.so'\narguments = 'x'\nenvironment = ['A=b=c']\nsessions = 2\n" +
		"tokens = { hsm = 'pkcs11:token=a', other = 'pkcs11:serial=1' }\n[[pkcs11]]\nmodule = '/usr/lib/b.so'\ntokens = { card = 'pkcs11:' }\n"
	got, err := Parse([]byte(good))
	want := []PKCS11{
		{Module: "/usr/lib/a.so", Arguments: "x", Environment: []string{"A=b=c"}, Sessions: 2,
			Tokens: map[string]string{"hsm": "pkcs11:token=a", "other": "pkcs11:serial=1"}},
		{Module: "/usr/lib/b.so", Tokens: map[string]string{"card": "pkcs11:"}},
	}
	if err != nil || !reflect.DeepEqual(got.PKCS11, want) {
		t.Errorf("got %+v, %v", got.PKCS11, err)
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"relative path":   {"/usr/lib/a.so", "a.so", "not an absolute path"},
		"unclean path":    {"/usr/lib/a.so", "/usr/../lib/a.so", "not an absolute path"},
		"no module":       {"module = '/usr/lib/b.so'\n", "", "not an absolute path"},
		"no tokens":       {"tokens = { card = 'pkcs11:' }", "", "no tokens"},
		"same name twice": {"card", "hsm", `"hsm" is taken`},
		"built-in name":   {"card", "tpm", `"tpm" is taken`},
		"odd name":        {"card", "'my card'", "token name"},
		"environment":     {"A=b=c", "A", "NAME=VALUE"},
		"sessions":        {"sessions = 2", "sessions = 65", "sessions"},
		"unknown key":     {"sessions = 2", "pin = '1234'", "unknown key"},
	} {
		_, err := Parse([]byte(strings.Replace(good, test.old, test.new, 1)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
