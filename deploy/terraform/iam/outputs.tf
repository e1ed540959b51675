output "role_arns" {
  description = "The role of each part: serving, working, and keda where it has a service account."
  value       = { for role, made in aws_iam_role.each : role => made.arn }
}

output "policies" {
  description = "The policy of each role, as JSON. Those of serving and working say the same as `relay provision --sqs --print-iam`."
  value       = { for role, policy in aws_iam_role_policy.each : role => policy.policy }
}
