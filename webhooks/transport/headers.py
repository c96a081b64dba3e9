"""Header names that producers use without loading the transport."""

#: The message's lane.
LANE_HEADER = "webhooks_lane"
#: When a message with a countdown is due, by `time.monotonic` of the process that publishes it. It is not stored.
DUE_HEADER = "webhooks_due"
#: The lane of messages without a lane, such as late logs. Its concurrency is never limited.
OTHERS = "-"
