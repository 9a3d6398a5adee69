"""What must not change a run: other devices, interruptions, wrong configs. Each module makes such trials and says what came of them."""
