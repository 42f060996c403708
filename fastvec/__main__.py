from fastvec.cli.entry import main

main()
