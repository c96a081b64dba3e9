"""``python -m tests.bench``: how fast the product is on this machine, beside what one would otherwise write.

Where to look:

- a row: `rates`, `queues`, `scaling`. A row is a function with the decorator `measuring.row`, which names its figures.
  What rows share is in `measuring.Bench`, above all ``drain``: queue events, start workers, take the rate of logs.
- what a row starts: `environment` (with `servers`, `receivers`, `workers`, `network`); events and those who hand them
  in: `events`, `producer`; what the product is compared with: `baselines`.
- how much is measured: `plan`; the bars and the run before: `bars`; what is printed: `report`.
- the capacity page: `capacity` has the rules, `page` the HTML. `pages` is a program of its own, for Flower's pages.

To add a row, write its function, and a bar if it has one.
"""
