"""Nobody notices a neighbour: real workers under load that is unfair, and figures of how the others fare."""
