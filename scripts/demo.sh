#!/bin/sh
# Shows the agent at work on real data, in a temporary folder that is gone afterwards.
# usage: demo.sh [FILE], the file to encrypt and to open with two halves of a key.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
file=${1:-README.md}
data=testdata/demo

work=$(mktemp -d "${TMPDIR:-/tmp}/mesh-demo.XXXXXX")
pids=
finish() {
	status=$?
	trap - EXIT
	# shellcheck disable=SC2086
	[ -z "$pids" ] || kill $pids 2>/dev/null || :
	wait
	[ "$status" -eq 0 ] || tail -n 5 "$work"/*.log >&2 2>/dev/null || :
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { # prints a command as a person would type it, then runs it
	printf '  $ %s\n' "$(echo "$*" | sed "s|$work/||g; s|^bin/||")"
	"$@"
}
agent() { # agent NAME COMMAND...: the command line, talking to that agent
	name=$1
	shift
	bin/mesh-agent "$@" --socket "$work/$name/agent.sock"
}
start() { # start NAME FLAGS...: a daemon with its own folder, ready when this returns
	name=$1
	shift
	mkdir -m 0700 "$work/$name"
	bin/mesh-agent serve --socket "$work/$name/agent.sock" --state "$work/$name/state" "$@" 2>"$work/$name.log" &
	pids="$pids $!"
	tries=0
	until agent "$name" status >/dev/null 2>&1; do
		tries=$((tries + 1))
		if [ "$tries" -gt 100 ]; then
			echo "demo: agent $name does not start" >&2
			exit 1
		fi
		sleep 0.1
	done
}

[ -r "$file" ] || { echo "demo: cannot read $file" >&2; exit 1; }
scripts/install-test-deps.sh demo
echo "building ..."
CGO_ENABLED=0 $GO build -trimpath -o bin/mesh-agent ./cmd/mesh-agent

swtpm socket --tpm2 --tpmstate "dir=$work" --server "type=unixio,path=$work/tpm.sock" \
	--ctrl "type=unixio,path=$work/tpm.ctrl" --flags not-need-init,startup-clear >"$work/swtpm.log" 2>&1 &
pids="$pids $!"
tries=0
until [ -S "$work/tpm.sock" ]; do
	tries=$((tries + 1))
	[ "$tries" -le 100 ] || { echo "demo: swtpm does not start" >&2; exit 1; }
	sleep 0.1
done
# Three agents, each as on a machine of its own. Software keys for the Mesh's own curves,
# which no TPM computes on; --insecure-... because nobody is there to type a passphrase.
start laptop --insecure-software-keys --tpm "swtpm:$work/tpm.sock"
start phone --insecure-software-keys --tpm off
start admin --insecure-software-keys --tpm off

title "1. A published Mesh envelope, opened"
echo "The reference code's examples hold an SSH key in an envelope that is encrypted to an"
echo "account's escrow key. The agent 'laptop' gets the escrow key and opens the envelope:"
escrow=$(agent laptop key import --token soft --use decrypt --label escrow "$data/published-key.json")
echo "  key import --use decrypt $data/published-key.json  ->  $escrow"
agent laptop decrypt "$data/published-envelope.json" >"$work/opened"
echo "  decrypt $data/published-envelope.json  ->"
head -n 6 "$work/opened" | cut -c 1-76 | sed 's/^/    | /'
sum=$(sha256sum <"$work/opened" | cut -d ' ' -f 1)
[ "$sum" = "$(cat "$data/published-plaintext.sha256")" ] || { echo "demo: the plaintext is not the published one" >&2; exit 1; }
echo "  $(wc -c <"$work/opened") octets, SHA-256 $sum: the published plaintext."

title "2. A key in two halves, on two agents"
laptop_take=$(agent laptop key generate --token soft --alg X448 --use decrypt --label "receives shares")
phone_take=$(agent phone key generate --token soft --alg X448 --use decrypt --label "receives shares")
agent laptop key public "$laptop_take" >"$work/laptop.json"
agent phone key public "$phone_take" >"$work/phone.json"
whole=$(agent admin key generate --token soft --alg X448 --use split --share-to "$work/laptop.json" --share-to "$work/phone.json")
agent admin key public "$whole" >"$work/team.json"
echo "The agent 'admin' made $whole, an X448 key that can only be split, and only"
echo "for 'laptop' and 'phone'. It splits it; each half is encrypted to its agent:"
agent admin share split --key "$whole" --threshold 2 --out-dir "$work/shares" 2>&1 >/dev/null | sed "s|$work/|    |"
laptop_half=$(agent laptop key import --token soft --use agree --unwrap-with "$laptop_take" "$work/shares/share-1.json")
phone_half=$(agent phone key import --token soft --use agree --unwrap-with "$phone_take" "$work/shares/share-2.json")
agent admin key delete --yes "$whole"
echo "  laptop holds $laptop_half, phone holds $phone_half; admin has deleted the whole."
bin/mesh-agent encrypt --to "$work/team.json" "$file" >"$work/file.dare"
echo "  encrypt --to team.json $file  ->  file.dare, $(wc -c <"$work/file.dare") octets"
if agent laptop decrypt --key "$laptop_half" "$work/file.dare" >"$work/alone" 2>"$work/refusal"; then
	echo "demo: half a key opened the file" >&2
	exit 1
fi
echo "  laptop alone:  $(head -n 1 "$work/refusal")"
if agent phone decrypt --key "$phone_half" "$work/file.dare" >"$work/alone" 2>"$work/refusal"; then
	echo "demo: half a key opened the file" >&2
	exit 1
fi
echo "  phone alone:   $(head -n 1 "$work/refusal")"
agent phone agree --key "$phone_half" --peer "$work/file.dare" >"$work/partial.json"
agent laptop decrypt --key "$laptop_half" --partial "$work/partial.json" "$work/file.dare" >"$work/file.out"
cmp "$file" "$work/file.out"
echo "  phone computes its part (agree), laptop adds its own (decrypt --partial): the file is"
echo "  back, octet for octet, and the whole key was nowhere."

title "3. An SSH signature by a key in a TPM"
signer=$(agent laptop key generate --token tpm --alg P256 --use ssh --label "in the TPM")
agent laptop key public --format ssh "$signer" >"$work/id.pub"
agent laptop key show "$signer" | grep protection | sed 's/^/  /'
SSH_AUTH_SOCK=$work/laptop/ssh.sock
export SSH_AUTH_SOCK
echo "signed in the TPM" >"$work/message"
run ssh-keygen -q -Y sign -n file -f "$work/id.pub" "$work/message" 2>/dev/null
echo "you@example.org $(cut -d ' ' -f 1,2 "$work/id.pub")" >"$work/allowed"
printf '  '
run ssh-keygen -Y verify -n file -f "$work/allowed" -I you@example.org -s "$work/message.sig" <"$work/message"

cat <<'TEXT'

What to try next
  make demo FILE=some-file-of-yours
  bin/mesh-agent serve --software-keys          a real agent, with a passphrase
  bin/mesh-agent key import --token soft --use ssh ~/.ssh/id_ed25519
  README.md tells the rest; `bin/mesh-agent --help` lists the commands.
TEXT
