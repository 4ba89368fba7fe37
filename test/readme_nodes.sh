# A part of readme.sh: several nodes with Redis and HAProxy, and other logs.

# ports N: so many free ones
ports() {
    python3 - "$1" <<'END'
import socket, sys
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[each.getsockname()[1] for each in taken])
END
}

read -r redis redis_proxy web tls a b c shared master replica <<<"$(ports 10)"
declare -A pids

# nodes TEXT: the block that has this text, with the ports and folders of here
nodes() {
    block "$1" | sed "
        s/\b6380\b/$redis/g; s/:8000\b/:$web/g; s/:8443\b/:$tls/g
        s/10.0.0.1:3000/127.0.0.1:$a/; s/10.0.0.2:3000/127.0.0.1:$b/
        s/10.0.0.3:3000/127.0.0.1:$c/; s/--port 3000/--port $shared/
        s/\b3001\b/$a/g; s/\b3002\b/$b/g; s/\b3003\b/$c/g
        s/:6379\b/:$redis_proxy/; s/redis-cli/redis-cli -p $master/
        s/redis-a.example:$redis_proxy/127.0.0.1:$master/
        s/redis-b.example:$redis_proxy/127.0.0.1:$replica/
        s|/var/tmp/ssed-log|$work/ssed-log|"
}

# serve NAME COMMAND...: runs it until it is stopped
serve() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 </dev/null &
    pids[$name]=$!
    servers+=($!)
}

# serve_block NAME TEXT: a block whose last command serves
serve_block() {
    nodes "$2" | sed '$s/^/exec /' >"$work/$1.sh"
    serve "$1" bash "$work/$1.sh"
}

serve_node() {
    serve_block "$1" "--port 300$(tr abc 123 <<<"$1") --token-file"
}

# stop NAME SIGNAL
stop() {
    kill "-$2" "${pids[$1]}"
    wait "${pids[$1]}" 2>/dev/null
}

says_away() { curl -s "127.0.0.1:$1/healthz" | grep -q "log away"; }
is_up() { [ "$(curl -s "127.0.0.1:$1/healthz")" = ok ]; }

publish() { # PORT DATA TOPIC?QUERY: the status
    curl -s -o "$work/answer" -w '%{http_code}' -d "$2" \
        -H "Authorization: Bearer $(cat token)" "localhost:$1/events/$3"
}

serve_block redis "redis-server --port 6380"
await redis-cli -p "$redis" ping
bash -c "$(nodes '[ -e token ]')"
for node in a b c; do serve_node $node; done
serve_block haproxy "haproxy -f haproxy.cfg"
for port in $a $b $c $web; do await is_up "$port"; done
expect "HAProxy's configuration" 0 <<<"$(grep -c 'ALERT\|WARNING' haproxy.log)"

# two readers through the proxy, on two of the nodes; each node publishes
nodes "curl -N localhost:8000" | sed -n '1s/^/exec /p' >read1.sh
nodes "curl -N localhost:8000" | sed -n '2s/^curl/exec curl -si/p' >read2.sh
serve http1 bash read1.sh
serve http2 bash read2.sh
for read in http1 http2; do await grep -q "^id" $read.log; done
for port in $a $b $c; do
    publish "$port" "from $port" jobs >/dev/null
    cp answer "from.$port"
    for read in http1 http2; do await grep -q "data: from $port" $read.log; done
done
bash -c "$(nodes "curl -d 'hello' -H \"Authorization: Bearer \$(cat token)\" localhost:8000")" \
    2>&1 | expect "publish through HAProxy" '"id"'
await grep -q "data: hello" http2.log
stop http1 TERM
stop http2 TERM
expect "read with TLS and HTTP/2" "^HTTP/2 200" <http2.log
position=$(sed 's/.*"id":"\([0-9]*\).*/\1/' "from.$a")
for port in $a $b $c; do
    timeout 1 curl -sN -H "Last-Event-ID: $position" "localhost:$port/events/jobs" |
        sed -n 's/^data: //p' | tr '\n' ' ' |
        expect "go on at any node" "^from $b from $c hello $"
done
curl -s -d x "localhost:$web/events/jobs" | expect "not without a token" Bearer

# Numbers are published, while nodes are killed and then replaced. The reader
# has to get each that was acknowledged, once and in order, and be told of no
# gap.
cat >follow.py <<'END'
import sys, time, urllib.request
last, end = "", time.monotonic() + 60
while time.monotonic() < end:
    request = urllib.request.Request(sys.argv[1])
    if last:
        request.add_header("Last-Event-ID", last)
    try:
        with urllib.request.urlopen(request, timeout=20) as stream:
            block = {}
            for line in stream:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    block[name] = value
                    continue
                last = block.get("id", last)
                if "event" in block or "data" in block:
                    print(block.get("event", ""), block["data"], flush=True)
                if block.get("event") == "ssed.end":
                    sys.exit()
                block = {}
    except OSError as error:
        print(error, file=sys.stderr)
    time.sleep(0.1)
END
python3 follow.py "http://localhost:$web/events/numbers?lastEventId=earliest" \
    >followed 2>follow.log &
follower=$!
publish_numbers() {
    local n=0 status
    while [ ! -e enough ]; do
        status=$(publish "$web" $n numbers)
        if [ "$status" = 201 ]; then
            echo " $n" >>acknowledged
        else
            echo "$status $(head -1 answer)" >>refused
        fi
        n=$((n + 1))
        sleep 0.01
    done
    publish "$web" "$n" "numbers?end=1" >/dev/null
}

publish_numbers &
publisher=$!
for node in a b c; do
    await test -s followed
    stop $node KILL
    serve_node $node
    await is_up "${!node}"
done
: >refused # what was under way at a node that was killed
ssh() { # in place of systemd: the block's $node is ended and started again
    local each
    for each in a b c; do
        [ "$node" = "127.0.0.1:${!each}" ] || continue
        stop $each TERM
        serve_node $each
    done
}
eval "$(nodes 'for node in 10.0.0.1')" >/dev/null
unset -f ssh
wc -l <refused | expect "nodes are restarted: no publish fails" "^0$"
touch enough
wait $publisher $follower
tail -n 1 followed | expect "their subscriber gets it all" '^ssed.end.*"complete":true'
grep -c ssed.gap followed | expect "without a gap" "^0$"
grep -vxFf followed acknowledged | wc -l | expect "nothing is missed" "^0$"
grep '^ ' followed | sort -nuc 2>&1 | wc -l | expect "nothing comes twice" "^0$"

nodes 'nproc' | sed 's/$(nproc)/2/' >cores.sh
timeout 2 bash cores.sh 2>&1 | grep -c event=ready | expect "nodes share a port" "^2$"

PATH=/usr/bin:$PATH bash -c "$(nodes 'import redis')" 2>&1 |
    expect "a back end in Python" "^id [0-9]"
NODE_PATH=/usr/share/nodejs bash -c "$(nodes 'require("redis")')" 2>&1 |
    expect "a back end in Node" "^id [0-9]"
curl -s --max-time 1 "localhost:$web/events/jobs?last=4" | grep '^data' |
    tr '\n' ' ' | expect "are heard" 'data: 40 % data: 50 % data: {.*} data: 60 %'

# Redis ends and comes back with its file
timeout 30 curl -sN "localhost:$web/events/jobs?last=1" >"$work/reader" &
reader=$!
await grep -q "data: 60 %" reader
stop redis KILL
await says_away "$a"
publish "$a" x jobs | expect "while Redis is away" 503
curl -s "127.0.0.1:$a/healthz" | expect "a node says so" "^ok, log away since 20.*: Redis"
serve_block redis "redis-server --port 6380"
wait $reader
position=$(sed -n 's/^id: //p' reader | tail -n 1)
await is_up "$b"
timeout 1 curl -sN -H "Last-Event-ID: $position" "localhost:$b/events/jobs" |
    expect "its next run is a gap" ssed.gap
await grep -q log_gap a.log

# all nodes are gone
for node in a b c; do stop $node KILL; done
await grep -q "backend 'nodes' has no server" haproxy.log
curl -s "localhost:$web/events/jobs" | expect "no node" "^retry: [0-9]*$"
stop haproxy TERM

# the proxy before Redis, and a failover
printf '%s\n' "port $master" "dir $work" "repl-diskless-sync-delay 0" >master.conf
serve master redis-server master.conf
await redis-cli -p "$master" ping
bash -c "$(nodes 'redis-cli config')" >/dev/null
expect "settings of a Redis that is there" "^appendonly yes" <master.conf
redis-cli -p "$master" config get maxmemory-policy | expect "and" noeviction
mkdir replica
serve replica redis-server --port "$replica" --dir "$work/replica" \
    --replicaof 127.0.0.1 "$master"
replicates() { redis-cli -p "$replica" info replication | grep -q link_status:up; }
await replicates
serve_block redis_proxy "haproxy -f redis.cfg"
await test -e redis.cfg
sed 's/# \(tcp-check\)/\1/; s/\(server [ab] .*\)/\1 with TLS/' redis.cfg |
    sed "s|with TLS\$|$(sed -n 's/.*with TLS.*line: //p' redis.cfg)|
        s|/etc/ssl/certs/ca-certificates.crt|$work/cert.pem|" >redis_tls.cfg
haproxy -c -f redis_tls.cfg 2>&1 | expect "the same with TLS and a password" valid
serve a ./ssed --redis "localhost:$redis_proxy" --port "$a" --token-file token
await is_up "$a"
publish "$a" one jobs | expect "Redis behind a proxy" 201
position=$(sed 's/.*"id":"\([0-9]*\).*/\1/' answer)
replicated() { redis-cli -p "$replica" xrevrange ssed + - | grep -q one; }
await replicated
stop master KILL
redis-cli -p "$replica" replicaof no one >/dev/null
await grep -q log_gap a.log
await is_up "$a"
publish "$a" two jobs | expect "a failover" 201
timeout 1 curl -sN -H "Last-Event-ID: $position" "localhost:$a/events/jobs" >reader
expect "is a gap" ssed.gap <reader
expect "and then goes on" "data: two" <reader
redis-cli -p "$replica" $(sed -n 's/^ACL \(SETUSER ssed\)/ACL \1/p' "$readme") >/dev/null
(umask 077; echo ssed PASSWORD >auth)
serve b ./ssed --redis "localhost:$replica" --redis-auth-file auth --port "$b"
await is_up "$b"
curl -s -d three "localhost:$b/events/jobs" | expect "a user with no more rights" '"id"'
stop a TERM
stop b TERM
stop redis_proxy TERM
stop replica TERM

# Kafka: the broker is the mock one of librdkafka, in a kcat that waits
mkfifo idle
serve kafka bash -c "exec kcat -P -b none -X test.mock.num.brokers=1 -t none <'$work/idle'"
exec 9>idle
await grep -q "replaced with" kafka.log
broker=$(sed -n 's/.*replaced with //p' kafka.log)
produce() { kcat -P -b "$broker" -t events -p 0 -D '~' "$@"; }
printf 'one\ntwo' | produce -k jobs
printf '{"three":"\\n"}' | produce
nodes 'kcat -C' | sed "s/localhost:9092/$broker/" >kafka.sh
serve kafka_feed timeout 20 bash kafka.sh
await grep -q event=ready kafka_feed.log
printf 'four' | produce -k jobs
sees() { grep -q "$2" < <(curl -s --max-time 0.3 "localhost:$1/events/jobs?last=9"); }
await sees "$a" four
curl -s --max-time 0.5 "localhost:$a/events/jobs?last=9" | tr '\n' ' ' |
    expect "Kafka" "id: 1 data: one data: two  id: 3 data: four"
curl -s --max-time 0.5 "localhost:$a/events?last=9" |
    expect "without a key" '"message":"{\\"three\\":\\"\\\\n\\"}"'
stop kafka_feed TERM
exec 9>&-

# PostgreSQL, which does not run as root
pg=$(mktemp -d)
as_owner=()
[ "$(id -u)" != 0 ] || { as_owner=(runuser -u postgres --); chown postgres "$pg"; }
bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | tail -n 1)
(cd / && "${as_owner[@]}" "$bin/initdb" -D "$pg/data" -U postgres -A trust \
    -E UTF8 --locale C --no-sync) >initdb.log 2>&1 || cat initdb.log
serve postgres env -C / "${as_owner[@]}" "$bin/postgres" -D "$pg/data" -k "$pg" -h '' -F
export PGHOST=$pg PGUSER=postgres PGDATABASE=postgres
await psql -c 'SELECT 1'
bash -c "$(nodes 'CREATE SEQUENCE')" >/dev/null
bash -c "$(nodes 'INSERT INTO outbox')" >/dev/null
nodes 'outbox.seen' | sed 's/^done |/& exec/' >outbox.sh
serve outbox timeout 20 bash outbox.sh
await sees "$b" 70
# the second begins later and ends earlier, if nothing holds it back
psql -qc "BEGIN; INSERT INTO outbox (topic, data) VALUES ('jobs', '\"slow\"');
    SELECT pg_sleep(0.7); COMMIT" >/dev/null &
slow=$!
begun() { psql -XqAtc "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'" | grep -q 1; }
await begun
psql -qc "INSERT INTO outbox (topic, data) VALUES ('jobs', '\"fast\n\"')"
wait $slow
await sees "$b" fast
curl -s --max-time 0.5 "localhost:$b/events/jobs?last=9" | tr '\n' ' ' |
    expect "PostgreSQL" 'id: 1 data: {"done": "70 %"}  id: 2 data: "slow"  id: 3 data: "fast'
# the feed goes on when the connection was lost
psql -XqAtc "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'WITH new%'" >/dev/null
psql -qc "INSERT INTO outbox (topic, data) VALUES ('jobs', '\"after\"')"
await sees "$b" after
curl -s --max-time 0.5 "localhost:$b/events/jobs?last=9" | grep -c "^data" |
    expect "and after a broken connection" "^4$"
stop outbox TERM
(cd / && "${as_owner[@]}" "$bin/pg_ctl" -D "$pg/data" -m immediate stop) >/dev/null
rm -rf "$pg"
