"""Crashes and power cuts while the node receives, contours and sends; what they cost is counted; hostile peers and load too."""
