"""A demonstration that needs no download: handwritten digits, a small residual network, PiX and PCS."""
