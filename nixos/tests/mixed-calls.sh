# Calls the gateway in every way that there is until /tmp/enough exists, so that no dashboard is empty.
# usage: mixed-calls GATEWAY
api=$1/api
call() { curl --silent --output /dev/null --max-time 30 "$@" || true; }
number=0
until [ -e /tmp/enough ]; do
  number=$((number + 1))
  user=$((number % 5 + 1))
  call -XPUT "$api/feed/create_feed" -d "{\"id\":$number,\"user_id\":$user,\"content\":\"hello\"}"
  call -XPUT "$api/profile/put_profile" -d "{\"user_id\":$user,\"name\":\"Ada\",\"company\":\"AE\",\"title\":\"Countess\"}"
  call -XPUT "$api/topic/put_topic" -d "{\"topic_id\":$user,\"subject\":\"rust\",\"content\":\"a language\"}"
  call "$api/feed/get_feeds?user_id=$user" "$api/topic/view?topic_id=$user" "$api/topic/list" \
    "$api/profile/get_profile?user_id=$user" "$api/profile/get_profile?user_id=99"
  call -XDELETE "$api/feed/delete_feed?user_id=$user&id=$number"
  # no time for an answer: 504
  call -H 'x-request-timeout-ms: 1' "$api/profile/get_profile?user_id=$user"
done
