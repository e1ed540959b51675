# Mistakes that are refused with a sentence, before anything is made.

mock_provider "aws" {
  mock_data "aws_subnet" {
    defaults = { id = "subnet-0aaaaaaaaaaaaaaa1", vpc_id = "vpc-0aaaaaaaaaaaaaaa1", cidr_block = "10.0.1.0/24", availability_zone = "eu-central-1a", availability_zone_id = "euc1-az2" }
  }
}

variables {
  vpc_id     = "vpc-0aaaaaaaaaaaaaaa1"
  subnets    = { a = { subnet_id = "subnet-0aaaaaaaaaaaaaaa1", address = "10.0.1.7" } }
  principals = ["arn:aws:iam::222222222222:root"]
}

run "everybody_as_principal" {
  command = plan
  variables {
    principals = ["*"]
  }
  expect_failures = [var.principals]
}

run "a_bare_account_number_as_principal" {
  command = plan
  variables {
    principals = ["222222222222"]
  }
  expect_failures = [var.principals]
}

run "enforcement_without_ranges_of_clients" {
  command = plan
  variables {
    enforce_rules_on_private_link = true
  }
  expect_failures = [var.enforce_rules_on_private_link]
}

run "everybody_as_a_range_of_clients" {
  command = plan
  variables {
    client_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.client_cidrs]
}

run "a_range_in_place_of_the_load_balancers_address" {
  command = plan
  variables {
    subnets = { a = { subnet_id = "subnet-0aaaaaaaaaaaaaaa1", address = "10.0.1.0/24" } }
  }
  expect_failures = [var.subnets]
}

run "an_address_of_another_subnet" {
  command = plan
  variables {
    subnets = { a = { subnet_id = "subnet-0aaaaaaaaaaaaaaa1", address = "10.0.2.7" } }
  }
  expect_failures = [data.aws_subnet.each["a"]]
}

run "a_subnet_of_another_vpc" {
  command = plan
  variables {
    vpc_id = "vpc-0bbbbbbbbbbbbbbb1"
  }
  expect_failures = [data.aws_subnet.each["a"]]
}

run "two_subnets_of_one_zone" {
  command = plan
  variables {
    subnets = {
      a = { subnet_id = "subnet-0aaaaaaaaaaaaaaa1", address = "10.0.1.7" }
      b = { subnet_id = "subnet-0aaaaaaaaaaaaaaa2", address = "10.0.1.8" }
    }
  }
  expect_failures = [aws_lb.relay]
}

run "other_regions_with_one_zone" {
  command = plan
  variables {
    supported_regions = ["eu-west-1"]
  }
  expect_failures = [aws_lb.relay]
}

run "a_header_in_front_of_a_server_that_speaks_first" {
  command = plan
  variables {
    listeners = { mail = { port = 25, target_port = 2525, server_speaks_first = true } }
  }
  expect_failures = [var.listeners]
}

run "a_header_in_front_of_nats" {
  command = plan
  variables {
    listeners = { nats = { port = 4222, target_port = 4222 } }
  }
  expect_failures = [var.listeners]
}

run "two_listeners_at_one_port" {
  command = plan
  variables {
    listeners = {
      data  = { port = 443, target_port = 7410 }
      other = { port = 443, target_port = 7411 }
    }
  }
  expect_failures = [var.listeners]
}

run "a_load_balancer_that_lets_go_before_relay_does" {
  command = plan
  variables {
    deregistration_seconds = 60
  }
  expect_failures = [var.deregistration_seconds]
}

run "a_drain_delay_in_which_new_connections_still_come" {
  command = plan
  variables {
    drain_delay_seconds = 5
  }
  expect_failures = [var.drain_delay_seconds]
}

run "a_health_check_at_no_port" {
  command = plan
  variables {
    health_check = { port = 0 }
  }
  expect_failures = [var.health_check]
}

run "neither_subnets_nor_a_load_balancer" {
  command = plan
  variables {
    subnets = {}
  }
  expect_failures = [var.nlb_arn]
}

run "an_application_load_balancer" {
  command = plan
  variables {
    nlb_arn = "arn:aws:elasticloadbalancing:eu-central-1:111111111111:loadbalancer/app/relay/0123456789abcdef"
    subnets = {}
  }
  expect_failures = [var.nlb_arn]
}

run "a_zone_for_a_name_that_is_not_given" {
  command = plan
  variables {
    public_zone_id = "Z0123456789"
  }
  expect_failures = [var.public_zone_id]
}
