#!/usr/bin/env bash
# Usage: package.sh DEBIAN
# Installs ssed as README.md says: with make; as a package, in a clean Debian,
# which is in the archive DEBIAN; as a container. The Makefile starts it as root
# with mounts, processes and a network of its own, which end with it.
set -uo pipefail
debian=$(realpath "$1")
cd "$(dirname "$0")/.." || exit 1
readme=$PWD/README.md
work=$PWD/.build/package
rm -rf "$work"
mkdir -p "$work"
. test/shared.sh

# check WHAT COMMAND...: it has to succeed, and says why if it does not
check() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1 </dev/null); then
        echo "ok: $what"
    else
        printf 'FAILED: %s: %s\n%s\n' "$what" "$*" "$output"
        touch "$work/failed"
    fi
}

# silent COMMAND...: it may say nothing on standard error
silent() {
    local output
    output=$("$@" 2>&1 >/dev/null) && [ -z "$output" ] || { echo "$output" && false; }
}

# same_lines COMMAND COMMAND: each prints the same
same_lines() {
    diff <(eval "$1") <(eval "$2")
}

# what README.md has root do
sudo() {
    "$@"
}

ip link set lo up
version=$(./ssed --version)
version=${version#ssed }

# A Debian that has been started. It shares the network of this script.
system=$work/debian
mkdir "$system"
tar -xf "$debian" -C "$system"
systemd-nspawn --quiet --directory "$system" --register=no --keep-unit --boot \
    </dev/null >"$work/boot.log" 2>&1 &
nspawn=$!

# the first process in it: before that, nspawn has others for a moment
find_leader() {
    leader=$(pgrep -P $nspawn -x systemd)
}
await find_leader

# inside COMMAND...: in it
inside() {
    nsenter --target "$leader" --all --root --wd env -i HOME=/root \
        PATH=/usr/sbin:/usr/bin DEBIAN_FRONTEND=noninteractive "$@"
}

await inside systemctl is-active --quiet multi-user.target || cat "$work/boot.log"

# serves WHAT: it runs as a service, takes an event and gives it
serves() {
    inside systemctl is-active ssed.socket ssed.service | tr '\n' ' ' |
        expect "$1: the service runs" "^active active $"
    curl -s -d hello localhost:3000/events/jobs | expect "publish" '"id"'
    timeout 1 curl -sN "localhost:3000/events/jobs?lastEventId=earliest" |
        expect "subscribe" "data: hello"
}

echo "== make install"
eval "$(block "sudo make install" | sed "s|sudo make install|& DESTDIR=$system|")" >/dev/null
check "what is installed, and where" same_lines \
    "(cd $system/usr/local && find . -type f | sort)" "printf './%s\n' bin/ssed \
    lib/systemd/system/ssed.service lib/systemd/system/ssed.socket \
    share/bash-completion/completions/ssed share/man/man1/ssed.1"
inside sh -c "$(block "enable --now" | sed "s/sudo //")" 2>&1 | expect "enable it" "Created"
serves "with systemd"
ps -o uid= -C ssed | expect "as a user of its own" "6[0-9]\{4\}$"
check "the units" inside systemd-analyze verify --man=no ssed.socket ssed.service
check "reload" inside systemctl reload ssed
inside systemctl disable --now ssed.socket ssed.service 2>&1 | expect "disable it" "Removed"

manual=$system/usr/local/share/man/man1/ssed.1
export LC_ALL=C.UTF-8 MANWIDTH=200
check "the manual: man" silent man --warnings -l "$manual"
check "the manual: mandoc" mandoc -T lint "$manual"
names="grep -o -- '--[a-z][a-z-]*' | sort -u"
check "it has every option" same_lines "./ssed --help | $names" "man -l $manual | $names"

# completed WORD...: what TAB makes of a command line
completed() {
    bash -c 'compopt() { options=$*; }; . "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _ssed
        printf "%s " "${COMPREPLY[@]}" ${options-}' _ \
        "$completion" ssed "$@"
}
completion=$system/usr/local/share/bash-completion/completions/ssed
bash -c ". $completion; complete -p ssed" |
    expect "the completion" "complete -F _ssed ssed"
completed --pub | expect "of an option" "^--public --publish $"
completed --publish "" | expect "of its value" "^local unix none $"
completed --publish = lo | expect "after =" "^local $"
completed --publish = | expect "and right after it" "^local unix none $"
completed --port "" | expect "of a number" "^ *$"
(cd test && completed --history-file read) |
    expect "of a file" "readme_nodes.sh .*-o filenames"
(cd "$work/.." && completed -r pack) | expect "of a folder" "^package -o filenames"
check "it has every option" same_lines "./ssed --help | $names" \
    "completed -- | tr ' ' '\n' | $names"

make -s uninstall DESTDIR="$system" >/dev/null
find "$system/usr/local" -type f | expect "make uninstall leaves nothing" "^$"

echo "== two builds"
mkdir -p "$work/one" "$work/another/folder"
for copy in "$work/one" "$work/another/folder"; do
    cp -R Makefile README.md .debian ./*.c ./*.h static "$copy"
    check "a build in ${copy#"$work/"}" env "TZ=UTC$((${#copy} % 10))" make -C "$copy" \
        VERSION="$version" SOURCE_DATE_EPOCH=1700000000 all deb
done
deb=.build/deb/ssed_${version}_$(dpkg --print-architecture).deb
for file in ssed "$deb" "${deb/ssed_/ssed-dbgsym_}"; do
    check "they are the same: ${file##*/}" cmp "$work/one/$file" "$work/another/folder/$file"
done
check "lintian" lintian --allow-root --fail-on error,warning "$work/one/.build/deb/"*.changes

version_in() {
    make -s -C "$1" --eval 'version:; @echo $(VERSION)' version
}

# versions: of commits before and after tags, which dpkg is to find increasing
versions() {
    local git=(git -c user.name=test -c user.email=test@localhost -C "$work/one") tag
    "${git[@]}" init -q
    echo /.build >"$work/one/.gitignore"
    for tag in "" "" v0.2-rc1 "" v0.2 "" v0.10; do
        "${git[@]}" add . && "${git[@]}" commit -q --allow-empty -m test
        [ -z "$tag" ] || "${git[@]}" tag "$tag"
        version_in "$work/one"
    done
    echo >>"$work/one/sse.c"
    version_in "$work/one"
}
increasing() {
    local before=0 one
    for one in "$@"; do
        dpkg --compare-versions "$before" lt "$one" || { echo "$before, $one" && false; }
        before=$one
    done
}
mapfile -t named < <(versions)
echo "${named[*]}" | expect "versions" \
    "^0.1~1.g[0-9a-f]* 0.1~2.g[^ ]* 0.2~rc1 0.2~rc1+1.g[^ ]* 0.2 0.2+1.g[^ ]* 0.10 0.10+dirty$"
check "they increase" increasing "${named[@]}"
version_in "$work/another/folder" | expect "without git" "^0.1$"

echo "== package"

# apt COMMAND...: as an unattended upgrade does it
apt() {
    inside apt-get -qy -o Dpkg::Options::=--force-confdef \
        -o Dpkg::Options::=--force-confold "$@"
}

# answered COMMAND...: ssed is asked all the time, and has to answer
answered() {
    touch "$work/asking"
    while [ -e "$work/asking" ]; do
        curl -s -o "$work/answer" --max-time 20 localhost:3000/ || echo "not answered: $?"
    done &
    "$@"
    rm "$work/asking"
    wait $!
}

mkdir -p "$system/.build/deb"
cp "$work/one/$deb" "$system/.build/deb"
check "install" inside sh -c "$(block "make deb" | sed 's/.*&& sudo //')"
inside systemctl is-enabled ssed.socket ssed.service | tr '\n' ' ' |
    expect "the units are enabled" "^enabled enabled $"
serves "installed"

# a secret of root's, by systemd
mkdir -p "$system/etc/ssed" "$system/etc/systemd/system/ssed.service.d"
(umask 077; head -c 32 /dev/urandom | base64 >"$system/etc/ssed/secret")
grep -B1 '^LoadCredential=' "$readme" \
    >"$system/etc/systemd/system/ssed.service.d/override.conf"
secret=$(grep -o -- '--secret-file /run[^`]*' "$readme")
echo "SSED_OPTIONS=\"$secret\"" >"$system/etc/default/ssed"
inside sh -c "systemctl daemon-reload && systemctl restart ssed"
curl -s -d hello localhost:3000/events/jobs | expect "nobody publishes" "takes a token"
token=$(inside ssed --secret-file /etc/ssed/secret --sign 'write=jobs exp=1h')
curl -s -d hello -H "Authorization: Bearer $token" localhost:3000/events/jobs |
    expect "but who has a token" '"id"'
mkdir "$system/etc/systemd/system/ssed.socket.d"
grep -B2 '^ListenStream=0' "$readme" \
    >"$system/etc/systemd/system/ssed.socket.d/override.conf"
inside sh -c "systemctl daemon-reload && systemctl restart ssed.socket ssed.service"
curl -s localhost:80/healthz | expect "at another address" "^ok$"
{ curl -s localhost:3000/healthz || echo gone; } | expect "not at the first" "^gone$"
rm -r "$system/etc/ssed" "$system/etc/systemd/system/ssed.service.d" \
    "$system/etc/systemd/system/ssed.socket.d" "$system/etc/default/ssed"
inside sh -c "systemctl daemon-reload && systemctl restart ssed.socket ssed.service"

# the next version comes with another /etc/default/ssed
echo 'SSED_OPTIONS="--history 1234"' >"$system/etc/default/ssed"
dpkg-deb -R "$work/one/$deb" "$work/next"
sed -i 's/^Version: .*/&+next/' "$work/next/DEBIAN/control"
echo "# what is new" >>"$work/next/etc/default/ssed"
dpkg-deb --root-owner-group -b "$work/next" "$system/.build/next.deb" >/dev/null
# runs_of UNIT: another value whenever it is started
runs_of() {
    inside systemctl show -P InvocationID "$1"
}
socket=$(runs_of ssed.socket) service=$(runs_of ssed.service)
answered apt install /.build/next.deb >"$work/upgrade.log" 2>&1
check "the socket stays open" test "$socket" = "$(runs_of ssed.socket)"
check "the server is a new one" test "$service" != "$(runs_of ssed.service)"
grep "not answered" "$work/upgrade.log" | expect "no connection is refused meanwhile" "^$"
inside dpkg-query -W ssed | expect "the version" "+next$"
inside journalctl -q -u ssed | tail -n 12 | expect "options are kept" "event=start .* history=1234"
timeout 1 curl -sN "localhost:3000/events/jobs?lastEventId=earliest" |
    expect "and so is the history" "data: hello"
serves "the new version"

check "remove" apt remove ssed
curl -s localhost:3000/ || echo $? | expect "nobody listens" "^7$"
check "the history is left" test -s "$system/var/lib/private/ssed/history"
check "and the options" test -s "$system/etc/default/ssed"
check "but not the program" test ! -e "$system/usr/bin/ssed"
check "purge" apt purge ssed
find "$system" -xdev -name "ssed*" -not -path "$system/.build/*" |
    expect "nothing is left" "^$"

echo "== container"
storage=(--root "$work/containers" --runroot "$work/running" --storage-driver vfs)

# podman COMMAND OPTION... IMAGE: what README.md asks of it, without a daemon,
# cgroups and a network for each container
podman() {
    local image=${*: -1} container entry
    if [ "$1" = build ]; then
        buildah "${storage[@]}" bud --isolation chroot "${@:2}"
    else
        container=$(buildah "${storage[@]}" from "localhost/$image")
        read -ra entry <<<"$(buildah "${storage[@]}" inspect --type image --format \
            '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}' "localhost/$image")"
        buildah "${storage[@]}" run --isolation chroot "$container" -- "${entry[@]}" \
            2>"$work/container.log" &
    fi
}
eval "$(block "FROM scratch")" >"$work/build.log" 2>&1 || cat "$work/build.log"
await grep -q event=ready "$work/container.log"
curl -s -d hello localhost:3000/events/jobs | expect "publish" '"id"'
timeout 1 curl -sN "localhost:3000/events/jobs?lastEventId=earliest" |
    expect "subscribe" "data: hello"
expect "with the history file" "event=history file=./history/events. .*made=1" <"$work/container.log"
ps -o user= -C ssed | expect "as nobody" "^nobody$"
buildah "${storage[@]}" images --format '{{.Size}}' | expect "its size" "^1\.[0-9]* MB$"

kill -KILL "$leader"
wait $nspawn
[ ! -e "$work/failed" ] && rm -rf "$work"
