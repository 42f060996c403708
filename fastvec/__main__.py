from fastvec.cli import main

main()
