"""What every protection can say of itself: who can see what, and on which assumption that rests."""
