"""Understanding a network without touching it: graph, shapes, blocks, stages, channel spaces."""
