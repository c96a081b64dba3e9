"""Names in a message's headers that a producer shares with the transport, which is loaded when it first publishes."""

#: The lane that the message belongs to.
LANE_HEADER = "webhooks_lane"
#: The lane of what has none of its own, such as a log on its way to MongoDB. Is never bounded.
OTHERS = "-"
