"""What a run leaves behind for people and for CI: report.json, report.html, junit.xml."""
