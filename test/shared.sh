# What readme.sh and package.sh share. $readme is README.md, $work a folder.

# block TEXT: the block of commands that has this text
block() {
    awk -v text="$1" '
        /^```sh$/ { inside = 1; block = ""; next }
        /^```$/ && inside { inside = 0; if (index(block, text)) { printf "%s", block; exit } }
        inside { block = block $0 "\n" }' "$readme"
}

# expect WHAT PATTERN: standard input must have it
expect() {
    local text
    text=$(cat)
    if grep -q -- "$2" <<<"$text"; then
        echo "ok: $1"
    else
        printf 'FAILED: %s: no "%s" in:\n%s\n' "$1" "$2" "$text"
        touch "$work/failed"
    fi
}

# await COMMAND...: until it succeeds
await() {
    local end=$((SECONDS + 20))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || {
            expect "in time: $*" . </dev/null
            return 1
        }
        sleep 0.05
    done
}
