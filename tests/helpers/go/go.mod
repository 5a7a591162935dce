module harmonytemplate

go 1.24
