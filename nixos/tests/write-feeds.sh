# Writes the feeds 1, 2, 3, ... of user 1 until /tmp/enough exists; those that were acknowledged are in /tmp/acknowledged,
# each with the time of its answer in seconds since the start of the machine.
# usage: write-feeds GATEWAY
id=0
until [ -e /tmp/enough ]; do
  id=$((id + 1))
  answer=$(curl --silent --max-time 30 --write-out ' %{http_code}' -XPUT "$1/api/feed/create_feed" \
    -d "{\"id\":$id,\"user_id\":1,\"content\":\"x\"}")
  [ "$answer" != '{} 200' ] || echo "$id $(cut -d' ' -f1 /proc/uptime)" >> /tmp/acknowledged
done
