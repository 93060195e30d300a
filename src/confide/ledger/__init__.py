"""What a server must never forget: licences, and what was answered to each. Both modes keep their books here."""
