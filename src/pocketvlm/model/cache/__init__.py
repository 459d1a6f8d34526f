"""What sequences leave behind between forwards, contiguous or in blocks."""
