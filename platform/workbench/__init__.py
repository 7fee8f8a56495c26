"""What measures and proves slingstone. Not in the wheel; nothing of the product imports it."""
