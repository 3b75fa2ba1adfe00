#!/bin/sh
# Two hosts on one machine: two network namespaces, joined by a veth pair. Run as root; it cleans up at its end.
#
#   benchmarks/two_hosts.sh [command]
#
# Runs the command on two ranks, one in each namespace; by default the benchmark of messages between hosts.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
one=lapse$$a two=lapse$$b
as_ssh=$(mktemp)

clean_up() {
    ip netns del "$one" 2>/dev/null || :
    ip netns del "$two" 2>/dev/null || :
    rm -f "$as_ssh"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# mpirun calls this in place of ssh: [options] HOST COMMAND...
cat > "$as_ssh" <<END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
case \$1 in *.1) name=$one ;; *) name=$two ;; esac
shift
exec ip netns exec "\$name" sh -c "\$*"
END
chmod +x "$as_ssh"

ip netns add "$one"
ip netns add "$two"
ip link add lapse1 netns "$one" type veth peer name lapse2 netns "$two"
for name in "$one" "$two"; do
    number=$([ "$name" = "$one" ] && echo 1 || echo 2)
    ip -n "$name" addr add "10.79.0.$number/24" dev "lapse$number"
    ip -n "$name" link set "lapse$number" up
    ip -n "$name" link set lo up
done
sleep 3  # until the IPv6 addresses of the interfaces are usable: libfabric takes one of them

[ $# -gt 0 ] || set -- "$here/.venv/bin/python" -m lapse.bench.two_hosts
. "$here/hostfiles/env.mpich"
ip netns exec "$one" "$here/.venv/bin/mpirun" -launcher ssh -launcher-exec "$as_ssh" \
    -hosts 10.79.0.1,10.79.0.2 -ppn 1 -n 2 "$@"
