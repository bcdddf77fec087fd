"""What a study may vary: named axes over Config fields."""
