#!/bin/sh
# Shows the agent at work on real data, in a temporary folder that is gone afterwards.
# usage: demo.sh [FILE], the file to encrypt and to open with two halves of a key.
set -eu
case ${1:-} in
'' | /*) file=${1:-README.md} ;;
*) file=$PWD/$1 ;;
esac
cd "$(dirname "$0")/.."
GO=${GO:-go}
data=testdata/demo
file=${file#"$PWD"/}

work=$(mktemp -d "${TMPDIR:-/tmp}/mesh-demo.XXXXXX")
pids=
finish() {
	status=$?
	trap - EXIT
	# shellcheck disable=SC2086
	[ -z "$pids" ] || kill $pids 2>/dev/null || :
	wait
	if [ "$status" -ne 0 ] && [ -n "$(ls "$work"/*.log 2>/dev/null)" ]; then
		echo "demo: failed; what the programs said last:" >&2
		tail -n 5 "$work"/*.log >&2 2>/dev/null || :
	fi
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

exec 3>&1 # what people see, also while the output of a command goes elsewhere
bold= plain=
[ ! -t 1 ] || { bold=$(printf '\033[1m') plain=$(printf '\033[0m'); }
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
fail() {
	echo "demo: $*" >&2
	exit 1
}
agent() { # agent NAME COMMAND...: the command line, talking to that agent
	name=$1
	shift
	bin/demo/mesh-agent "$@" --socket "$work/$name/agent.sock"
}
on() { # the same, shown as a person would type it
	printf '  %s$ mesh-agent' "$1" >&3
	name=$1
	shift
	for word; do printf ' %s' "${word#"$work"/}"; done >&3
	echo >&3
	agent "$name" "$@"
}
start() { # start NAME FLAGS...: a daemon with its own folder, ready when this returns
	name=$1
	shift
	bin/demo/mesh-agent serve --socket "$work/$name/agent.sock" --state "$work/$name/state" "$@" 2>"$work/$name.log" &
	pids="$pids $!"
	wait_for "agent $name" agent "$name" status
}
wait_for() { # wait_for WHAT COMMAND...: until the command succeeds, ten seconds at most
	what=$1
	shift
	tries=0
	until "$@" >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ "$tries" -le 100 ] || fail "$what does not start"
		sleep 0.1
	done
}

[ -r "$file" ] || fail "cannot read $file"
scripts/install-test-deps.sh demo
echo "building the agent ..."
# Static: the demonstration has no PKCS#11 module, and needs no C compiler. A folder of its own
# leaves the binary of make build alone.
CGO_ENABLED=0 $GO build -trimpath -o bin/demo/mesh-agent ./cmd/mesh-agent

swtpm socket --tpm2 --tpmstate "dir=$work" --server "type=unixio,path=$work/tpm.sock" \
	--ctrl "type=unixio,path=$work/tpm.ctrl" --flags not-need-init,startup-clear \
	--pid "file=$work/swtpm.pid" >"$work/swtpm.log" 2>&1 &
pids="$pids $!"
wait_for "the TPM simulator" test -s "$work/swtpm.pid" # which it writes when its socket is open
echo "starting a TPM simulator and three agents, each as on a machine of its own ..."
# Software keys for the Mesh's own curves, which no TPM computes on; --insecure-... because
# nobody is there to type a passphrase.
start laptop --insecure-software-keys --tpm "swtpm:$work/tpm.sock"
start phone --insecure-software-keys --tpm off
start admin --insecure-software-keys --tpm off

title "1. A published Mesh envelope, opened"
cat <<'TEXT'
Among the examples of the Mesh's reference code is an SSH key in an envelope, encrypted to
an account's escrow key. The agent takes the escrow key and opens the envelope:
TEXT
on laptop key import --token soft --use decrypt "$data/published-key.json" | sed 's/^/  /'
on laptop decrypt "$data/published-envelope.json" >"$work/opened.json"
head -n 6 "$work/opened.json" | cut -c 1-76 | sed 's/^/    /'
sum=$(sha256sum <"$work/opened.json" | cut -d ' ' -f 1)
[ "$sum" = "$(cat "$data/published-plaintext.sha256")" ] || fail "the plaintext is not the published one"
echo "    ... $(wc -c <"$work/opened.json") octets, SHA-256 $(echo "$sum" | cut -c 1-16)...: the published plaintext."
echo "What was in it is a key that the agent takes too, and SSH can use:"
on laptop key import --token soft --use ssh --label published "$work/opened.json" | sed 's/^/  /'
SSH_AUTH_SOCK=$work/laptop/ssh.sock
export SSH_AUTH_SOCK
printf '  laptop$ ssh-add -l\n  '
ssh-add -l

title "2. A key in two halves, on two agents"
echo "laptop and phone each make a key to receive shares with; admin makes an X448 key that can"
echo "do one thing: be split for these two."
laptop_box=$(on laptop key generate --token soft --alg X448 --use decrypt)
phone_box=$(on phone key generate --token soft --alg X448 --use decrypt)
agent laptop key public "$laptop_box" >"$work/laptop.json"
agent phone key public "$phone_box" >"$work/phone.json"
team=$(on admin key generate --token soft --alg X448 --use split --share-to "$work/laptop.json" --share-to "$work/phone.json")
agent admin key public "$team" >"$work/team.json"
on admin share split --key "$team" --threshold 2 --out-dir "$work/shares" >/dev/null 2>&1
laptop_half=$(on laptop key import --token soft --use agree --unwrap-with "$laptop_box" "$work/shares/share-1.json")
phone_half=$(on phone key import --token soft --use agree --unwrap-with "$phone_box" "$work/shares/share-2.json")
on admin key delete --yes "$team"
echo "Anybody can encrypt to the key. One half alone opens nothing:"
on you encrypt --to "$work/team.json" "$file" >"$work/file.dare"
if on laptop decrypt --key "$laptop_half" "$work/file.dare" >"$work/alone" 2>"$work/refusal.log"; then
	fail "half a key opened the file"
fi
sed 's/^/  /' "$work/refusal.log"
if on phone decrypt --key "$phone_half" "$work/file.dare" >"$work/alone" 2>"$work/refusal.log"; then
	fail "half a key opened the file"
fi
sed 's/^/  /' "$work/refusal.log"
echo "Both together do: phone computes its part, laptop adds its own."
on phone agree --key "$phone_half" --peer "$work/file.dare" >"$work/partial.json"
on laptop decrypt --key "$laptop_half" --partial "$work/partial.json" "$work/file.dare" >"$work/file.out"
cmp "$file" "$work/file.out" || fail "the file did not come back"
echo "  $(wc -c <"$work/file.out") octets, the same as $file. Neither of the two ever had the whole key."

title "3. An SSH signature by a key that lives in a TPM"
signer=$(on laptop key generate --token tpm --alg P256 --use ssh --label "in-the-tpm")
agent laptop key public --format ssh "$signer" >"$work/id.pub"
echo "signed in the TPM" >"$work/message"
echo "you@example.org $(cut -d ' ' -f 1,2 "$work/id.pub")" >"$work/allowed"
echo "  laptop\$ ssh-keygen -Y sign -n file -f id.pub message"
ssh-keygen -Y sign -n file -f "$work/id.pub" "$work/message" 2>"$work/ssh-keygen.log"
echo "  laptop\$ ssh-keygen -Y verify -n file -f allowed -I you@example.org -s message.sig <message"
printf '  '
ssh-keygen -Y verify -n file -f "$work/allowed" -I you@example.org -s "$work/message.sig" <"$work/message"

title "What to try next"
cat <<'TEXT'
  make demo FILE=a-file-of-yours
  make build; bin/mesh-agent serve --software-keys       an agent of your own, with a passphrase
  bin/mesh-agent --help                                  and README.md, which tells how to go on
TEXT
