#!/usr/bin/env bash
# Usage: readme.sh SSED
# Runs the commands of README.md as they stand there, but for the ports, which
# are free ones, and for how long they run. What it needs is in the Makefile.
set -uo pipefail
readme=$(cd "$(dirname "$0")/.." && pwd)/README.md
root=$(dirname "$readme")
ssed=$(realpath "$1")
work=$(mktemp -d)
cd "$work" || exit 1
ln -s "$ssed" ssed
ln -s "$root/static" static
servers=()
. "$root/test/shared.sh"
trap 'status=$?; kill "${servers[@]}" 2>/dev/null; wait; rm -rf "$work"; exit $status' EXIT

# start NAME OPTION...: a server of its own; its port is then in $port
start() {
    local log=$work/$1.log
    shift
    : >"$log"
    ./ssed --port 0 "$@" 2>"$log" <"${input:-/dev/null}" &
    servers+=($!)
    until port=$(sed -n 's/.*listening address=.*:\([0-9]*\)$/\1/p' "$log") &&
        [ -n "$port" ] && grep -q event=ready "$log"; do
        kill -0 "${servers[-1]}" || { cat "$log"; exit 1; }
    done
}

# run SECONDS TEXT: what that block prints in that time, on the main server
run() {
    local commands
    commands=$(block "$2" | sed "s/localhost:3000/localhost:$main/g; s/(\"localhost\", 3000)/(\"localhost\", $main)/; s/--port [0-9]*/--port 0/; s/\(0.0.0.0\|127.0.0.1\):3000/\1:0/")
    [ -n "$commands" ] || { echo "no block with: $2"; return 1; }
    timeout "$1" bash -c "$commands" 2>&1
}

start main --interval 0
main=$port

run 1 "curl -N localhost:3000/events/chat/42" >"$work/watch" &
watch=$!
until grep -q 'topic=chat/42' "$work/main.log"; do :; done
run 5 "curl -d '你好'" | expect "publish" '"subscribers":1}'
wait $watch
expect "watch a topic" "data: 你好" <"$work/watch"
run 1 "Last-Event-ID: 17954" | expect "an old id is a gap" "event: ssed.gap"
block "Last-Event-ID: 17954" | sed -n 2p | sed "s/3000/$main/; s/^/timeout 1 /" |
    bash 2>&1 | expect "earliest" "data: 你好"
block "Last-Event-ID: 17954" | sed -n 3p | sed "s/3000/$main/; s/^/timeout 1 /" |
    bash 2>&1 | expect "the newest ten" "data: 你好"
run 1 "topic=chat/42&topic=jobs" | expect "several topics" "retry: 3000"
run 5 "curl -X DELETE" | expect "finish a topic" '"id"'
curl -s -o /dev/null -w '%{http_code}\n' "localhost:$main/events/chat/42" |
    expect "a finished topic" 204
run 5 "printf 'data: Hel" | expect "a stream of events" '"count":2'
curl -s "localhost:$main/events/chat/43?lastEventId=earliest" |
    expect "and its end" "event: ssed.end"
# a stand-in for a model's API
python3 "$root/test/browser/model.py" 0.01 >"$work/model" &
servers+=($!)
until API=$(sed -n 's/.*\(http.*\)\/v1\/.*/\1/p' "$work/model") && [ -n "$API" ]; do :; done
export API KEY=none
run 20 'curl -sN "$API' | expect "an answer of a model" '"count":[0-9]'
run 2 "chat/44?lastEventId=earliest" | expect "word by word" 'content": "An'
run 2 "-X DELETE localhost:3000/events/chat/44" | expect "stop it" '"id"'
run 5 "method=\"HEAD\"" | expect "a snapshot with Python" "lastEventId=[0-9]"
run 5 'method: "HEAD"' | expect "a snapshot with Node" "lastEventId=[0-9]"
run 5 "curl -d '已发货'" | expect "in Chinese: publish" '"id"'
run 1 "dingdan/7?lastEventId=earliest" | expect "subscribe" "data: 已发货"
run 2 "ping localhost | ./ssed - --topic ping --port 0" |
    expect "standard input" "event=input topic=ping"
run 5 "curl -X DELETE localhost:3000/events/dingdan" | expect "finish" '"id"'
run 3 "while sleep 1" | expect "a shell loop" '"id"'
run 20 "import http.client" | expect "publish with Python" '"count":5'
run 20 'method: "POST"' | expect "publish with Node" "subscribers: 0"
run 8 "import time, urllib.request" | expect "subscribe with Python" "100 %"
run 5 "pipeThrough" | expect "subscribe with Node" "data: done"
block "sed -u" | sed -n "3,\$p" | sed "s/localhost:3000/localhost:$main/" >log.sh
timeout 2 bash log.sh >/dev/null 2>&1
timeout 1 curl -sN "localhost:$main/events/log?last=1" |
    expect "a log into a running server" "data: "

ping -c 2 localhost >"$work/ping" 2>&1
input=$work/ping start ping - --topic ping
timeout 1 curl -sN "localhost:$port/events/ping?last=10" |
    expect "standard input" "data: .*PING"
run 2 "--topic ping" | expect "as it stands there" "event=input topic=ping"
run 3 "--ids keep --port" | expect "one server feeds another" \
    "event=input topic=jobs"
run 2 "--root static" | expect "a folder of pages" "event=ready"

run 2 "--history-file history" | expect "a history file" "event=history"
./ssed --check history | expect "and what is in it" "^ids  "

# figures: what Prometheus itself says of them, and of its files in README.md
block "--admin 127" | sed 's/9100/0 --port 0/' | timeout 2 bash 2>&1 |
    expect "a listener for figures" "event=admin address=127.0.0.1"
start figures --admin 127.0.0.1:0
admin=$(sed -n 's/.*event=admin address=.*:\([0-9]*\)$/\1/p' figures.log)
curl -s -d hello "localhost:$port/events/chat/42" | expect "an event" '"id"'
block "localhost:9100/metrics" | sed "s/9100/$admin/" | bash -s 2>/dev/null >figures
expect "its figures" "^ssed_events_published_total 1$" <figures
expect "its topics" '"name":"chat/42","subscribers":0,"held":1' <figures
{ curl -s "localhost:$admin/metrics" | promtool check metrics && echo good; } \
    2>&1 | expect "promtool: the figures" "^good"
yaml() {
    awk -v text="$1" '
        /^```yaml$/ { inside = 1; block = ""; next }
        /^```$/ && inside { inside = 0; if (index(block, text)) printf "%s", block }
        inside { block = block $0 "\n" }' "$readme"
}
yaml scrape_configs >prometheus.yml
promtool check config prometheus.yml 2>&1 | expect "promtool: what scrapes them" SUCCESS
yaml "alert:" >rules.yml
promtool check rules rules.yml 2>&1 | expect "promtool: the alerts" "6 rules found"
# what each of them is for goes on for a quarter of an hour, on one of two servers
cat >alerts.yml <<'END'
rule_files: [rules.yml]
tests:
  - interval: 1m
    input_series:
      - { series: 'up{job="ssed",instance="a"}', values: '0x15' }
      - { series: 'up{job="ssed",instance="b"}', values: '1x15' }
      - { series: 'ssed_turn_seconds_bucket{instance="a",le="0.025"}', values: '0+90x15' }
      - { series: 'ssed_turn_seconds_bucket{instance="a",le="0.1"}', values: '0+100x15' }
      - { series: 'ssed_turn_seconds_bucket{instance="a",le="+Inf"}', values: '0+100x15' }
      - { series: 'ssed_turn_seconds_bucket{instance="b",le="0.025"}', values: '0+100x15' }
      - { series: 'ssed_turn_seconds_bucket{instance="b",le="+Inf"}', values: '0+100x15' }
      - { series: 'ssed_subscribers{instance="a"}', values: '100x15' }
      - { series: 'ssed_subscribers{instance="b"}', values: '100x15' }
      - { series: 'ssed_unsubscribed_total{instance="a",reason="overrun"}', values: '0+1x15' }
      - { series: 'ssed_unsubscribed_total{instance="b",reason="closed"}', values: '0+1x15' }
      - { series: 'ssed_gaps_total{instance="a",cause="evicted"}', values: '0+1x15' }
      - { series: 'ssed_gaps_total{instance="b",cause="invalid"}', values: '0+1x15' }
      - { series: 'ssed_connections{instance="a",listener="public"}', values: '91x15' }
      - { series: 'ssed_connections{instance="b",listener="public"}', values: '89x15' }
      - { series: 'ssed_connections_limit{instance="a"}', values: '100x15' }
      - { series: 'ssed_connections_limit{instance="b"}', values: '100x15' }
      - { series: 'ssed_publishes_total{instance="a",status="503"}', values: '0+1x15' }
      - { series: 'ssed_publishes_total{instance="b",status="400"}', values: '0+1x15' }
    promql_expr_test:
      - expr: count by (alertname, instance) (ALERTS{alertstate="firing"})
        eval_time: 12m
        exp_samples:
          - { labels: '{alertname="SsedDown",instance="a"}', value: 1 }
          - { labels: '{alertname="SsedSlow",instance="a"}', value: 1 }
          - { labels: '{alertname="SsedOverruns",instance="a"}', value: 1 }
          - { labels: '{alertname="SsedGaps",instance="a"}', value: 1 }
          - { labels: '{alertname="SsedFull",instance="a"}', value: 1 }
          - { labels: '{alertname="SsedRefuses",instance="a"}', value: 1 }
END
promtool test rules alerts.yml 2>&1 | expect "each alert tells what it is for" SUCCESS

./ssed --print units >units
awk '/^# ssed.socket$/ { inside = 1 } /^```$/ { inside = 0 } inside' "$readme" |
    diff - units && echo "ok: the unit files" || touch "$work/failed"

head -c 24 /dev/urandom | base64 >token
run 2 "history --token-file" | expect "behind a proxy" "publish=.*token"
run 2 "--publish unix --listen" | expect "or so" "address=unix:ssed.socket"
start token --token-file token
curl -s -d hello -H "Authorization: Bearer $(cat token)" \
    "localhost:$port/events/jobs" | expect "publish with a token" '"id"'
curl -s -d hello "localhost:$port/events/jobs" | expect "and without" Bearer

# no port but a free one: the file is what the first line is for
ln -s "$root/.build/tokens/node_modules" node_modules
block "--secret-file secret --public" | head -n 1 | bash
start secret --secret-file secret --public 'news/*'
for library in "import jwt" "SignJWT"; do
    main=$port PATH=/usr/bin:$PATH run 10 "$library" >cookie
    expect "a cookie: $library" "^Set-Cookie: ssed_token=.*HttpOnly" <cookie
    sed -n 's/^Set-\(Cookie: [^;]*\);.*/\1/p' cookie |
        curl -s -o /dev/null -w '%{http_code}\n' -I -H @- \
            "localhost:$port/events/chat/42" | expect "it is accepted" 200
done
main=$port run 3 "TOKEN=" >signed
expect "publish with a signed token" '"id"' <signed
expect "subscribe with it" "data: hello" <signed
main=$port run 1 "events/news/today" | expect "what is public" "retry: 3000"
curl -s "localhost:$port/events/chat/42" | expect "what is not" "takes a token"
run 3 "read=dingdan/7" | expect "in Chinese: sign" '^eyJ.*\..*\.'

curl -s "localhost:$main/healthz" | expect "is it well" ok
block bench/fan | sed "s|bench/fan\$|& --port $main --seconds 2|" >fan.sh
(cd "$root" && timeout 100 bash "$work/fan.sh" 2>&1) |
    expect "the load generator" "^delivered *40,000 of 40,000"
. "$root/test/readme_nodes.sh"
[ ! -e "$work/failed" ]
