"""Header names that producers use without loading the transport."""

#: The message's lane.
LANE_HEADER = "webhooks_lane"
#: The lane of messages without a lane, such as late logs. Its concurrency is never limited.
OTHERS = "-"
