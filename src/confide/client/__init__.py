"""The client of a confidential model: it appraises first and sends afterwards."""
