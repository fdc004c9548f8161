"""From frames to crops and back: boxes, streams, crops, the image processor."""
